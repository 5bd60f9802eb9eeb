"""Branches on tensor values that only save work: traced without the shortcut, and proven to change nothing.

A mixture of experts written by hand visits the experts that some token chose, and skips one that no token chose.
A graph cannot skip; but an expert that is given no token adds nothing, so a graph that visits all of them computes
the same. Whether a branch is of this kind is not read from the code but tried: the model is traced as if no set of
hits were empty, every element of a small fixed vector were a hit, and every condition that varies had one answer;
the program is taken only when it equals the model on inputs of several sizes, the smallest among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from ..source_map import Frame
from .assume import Decision, constant_answers, reading_frame, varied
from .inputs import Examples
from .outputs import Outputs, flatten_outputs
from .replay import Replay, difference
from .sizes import size_variants
from .trace import quiet_run, trace

__all__ = ["LongWay", "trace_without_shortcuts"]

#: A vector of at most this many elements may be visited whole instead of at its hits.
_WHOLE: Final = 1024
#: How many inputs must agree.
_NEEDED: Final = 4
_VIEWS: Final = frozenset(
    {torch.Tensor.view, torch.Tensor.reshape, torch.Tensor.flatten, torch.Tensor.squeeze, torch.Tensor.__getitem__}
)
_NUMBERS: Final = frozenset({torch.Tensor.item, torch.Tensor.__index__, torch.Tensor.__int__, torch.Tensor.tolist})
_UNBIND: Final = frozenset({torch.unbind, torch.Tensor.unbind})  # what a for loop over a tensor calls
_NONZERO: Final = frozenset({torch.nonzero, torch.Tensor.nonzero})


@dataclasses.dataclass(frozen=True)
class LongWay:
    """That a program leaves shortcuts out, with the number of inputs on which it equals the model."""

    agreed: int

    def note(self) -> str:
        """The finding as a sentence."""
        return (
            "The model skips work by the values of tensors (experts without a token, say); the graph leaves the "
            f"shortcuts out and does the work. It equals the model on all {self.agreed} inputs tried."
        )


class _LongWay(TorchFunctionMode):
    """Answers what only the data could answer, so that tracing takes the way that does the work.

    Args:
        known: Conditions that never varied, by line.
        answer: For all others.
        whole: Whether a small fixed vector is visited whole instead of at its hits.
        unused: How many of its last positions are left out.
    """

    def __init__(self, known: Mapping[Frame, bool], *, answer: bool, whole: bool, unused: int = 0) -> None:
        super().__init__()
        self.known, self.answer, self.whole, self.unused = known, answer, whole, unused
        # Tensors are kept alive, so that an id stays theirs.
        self._visited: dict[int, torch.Tensor] = {}  # those that stand for all positions of a vector
        self._position: dict[int, tuple[torch.Tensor, int]] = {}  # those that are one such position, and which

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.item, torch.Tensor.__bool__) and args[0].dtype == torch.bool:
            frame = reading_frame()
            return self.known.get(frame, self.answer) if frame is not None else self.answer
        if func in _NONZERO or (func is torch.where and len(args) == 1):
            return self._hits(func, args, kwargs)
        if args and id(args[0]) in self._visited:
            return self._visit(func, args, kwargs)
        if args and id(args[0]) in self._position:
            return self._at(func, args, kwargs)
        result = func(*args, **kwargs)
        if func is torch.Tensor.__getitem__:
            _never_empty(result)
        return result

    def _hits(self, func: Any, args: Any, kwargs: Any) -> Any:
        condition = args[0]
        as_tuple = func is torch.where or kwargs.get("as_tuple", False)
        size = condition.shape[0] if condition.dim() == 1 else None
        size = size - self.unused if isinstance(size, int) else None
        if self.whole and isinstance(size, int) and 0 < size <= _WHOLE:
            every = torch.arange(size) if as_tuple else torch.arange(size).unsqueeze(1)
            self._visited[id(every)] = every
            return (every,) if as_tuple else every
        result = func(*args, **kwargs)
        for tensor in result if isinstance(result, tuple) else (result,):
            _never_empty(tensor)
        return result

    def _visit(self, func: Any, args: Any, kwargs: Any) -> Any:
        every = args[0]
        if func is torch.Tensor.tolist:
            return [[i] for i in range(every.shape[0])] if every.dim() == 2 else list(range(every.shape[0]))
        if func in _UNBIND and (args[1:], kwargs) in (((), {}), ((0,), {}), ((), {"dim": 0})):
            return tuple(self._number(torch.tensor([i] if every.dim() == 2 else i), i) for i in range(every.shape[0]))
        result = func(*args, **kwargs)
        if func in _VIEWS and isinstance(result, torch.Tensor) and result.shape[:1] == every.shape[:1]:
            self._visited[id(result)] = result
        return result

    def _number(self, tensor: torch.Tensor, value: int) -> torch.Tensor:
        self._position[id(tensor)] = (tensor, value)
        return tensor

    def _at(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A position may index a list of modules, so its number is known while tracing."""
        value = self._position[id(args[0])][1]
        if func is torch.Tensor.__format__ and args[0].dim() == 0:  # the name of a module: f"expert_{i}"
            return format(value, args[1])
        if func in _NUMBERS:
            return [value] if func is torch.Tensor.tolist and args[0].dim() else value
        result = func(*args, **kwargs)
        return self._number(result, value) if func in _VIEWS else result


def _never_empty(tensor: Any) -> None:
    """Tell torch that a tensor whose size depends on values has an element."""
    if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
        return
    size = tensor.shape[0]
    if isinstance(size, torch.SymInt) and not size.node.has_hint():
        torch._check(size > 0)


def trace_without_shortcuts(
    module: torch.nn.Module, examples: Examples, outputs: Outputs, numbers: Sequence[int] = ()
) -> tuple[ExportedProgram, tuple[Decision | LongWay, ...]] | None:
    """Trace a module the long way round its data-dependent shortcuts; None when no such program equals the model.

    Args:
        module: The model.
        examples: Inputs and declared axes.
        outputs: Receives the names of the results.
        numbers: What the model looks for among its ids; the program must equal it also where it is found.

    Returns:
        The program, the conditions it takes as constant, and that it leaves shortcuts out.
    """
    known = constant_answers(module, examples, numbers)
    if known is None:
        return None
    unused = 0  # positions at the end of a vector of hits that nothing can hit: the class of masked tokens
    for whole, answer in itertools.product((True, False), (True, False)):
        for variant in size_variants(examples):
            with contextlib.suppress(Exception):
                try:
                    with _LongWay(known, answer=answer, whole=whole, unused=unused):
                        program = trace(module, variant, outputs)
                except IndexError:  # one more class than there are experts
                    unused = 1
                    with _LongWay(known, answer=answer, whole=whole, unused=unused):
                        program = trace(module, variant, outputs)
                agreed = _agreed(module, program, examples, numbers)
                if agreed > _NEEDED:
                    constant = (Decision(frame, value) for frame, value in known.items())
                    return program, (*constant, LongWay(agreed))
                break
    return None


def _agreed(module: torch.nn.Module, program: ExportedProgram, examples: Examples, numbers: Sequence[int]) -> int:
    """On how many inputs of different sizes and contents a program equals the module; 0 when it differs on one."""
    replay, agreed = Replay(program), 0
    for inputs in (examples, *varied(examples, numbers)):
        try:
            expected = list(flatten_outputs(quiet_run(module, inputs))[0].values())
        except Exception:  # an input the model does not take says nothing
            continue
        found = replay.outputs(inputs)
        if difference(expected, found, [str(i) for i in range(len(expected))]):
            return 0
        agreed += 1
    return agreed
