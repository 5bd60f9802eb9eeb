"""Branches on tensor values that never go the other way: taken as the examples take them, and said so.

Some models ask a tensor whether a rare feature is in use (Longformer: is any position global?) and branch on the
answer. A graph cannot branch so. When the answer is the same on the examples and on varied inputs (other sizes,
other values, other masks, ids with the numbers that the model looks for), the model is traced with that answer, and
the assumption is reported. When it ever differs, the model is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from ..source_map import Frame
from .inputs import ExampleInput, Examples
from .outputs import Outputs
from .sizes import size_variants
from .trace import quiet_run, trace

__all__ = ["Decision", "constant_answers", "looked_for", "reading_frame", "trace_assuming", "varied"]

#: How many varied inputs must give the same answers, and how many are tried.
_NEEDED: Final = 4
_TRIED: Final = 10

#: How many numbers that a model looks for among its ids are put there.
_LOOKED_FOR: Final = 3
_EQUALITIES: Final = frozenset(
    {torch.eq, torch.ne, torch.Tensor.eq, torch.Tensor.ne, torch.Tensor.__eq__, torch.Tensor.__ne__}
)

_ROUNDING: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "floor": lambda a, b: a // b,
    # Sizes are not negative, so rounding towards zero is rounding down.
    "trunc": lambda a, b: a // b,
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """A truth value that Python read from a tensor at one line of the model.

    ``differs_for`` holds the numbers that the model looks for among its ids and with which it gave the other value.
    """

    frame: Frame
    value: bool
    differs_for: tuple[int, ...] = ()

    def note(self) -> str:
        """The assumption as a sentence."""
        numbers = " or ".join(map(str, self.differs_for))
        tried = f" without {numbers} among its ids" if numbers else ""
        differs = f" It gave {not self.value} with {numbers} among them." if numbers else ""
        return (
            f"The graph assumes that the tensor whose truth `{self.frame.code}` ({self.frame.where}) asks for gives "
            f"{self.value}, as it did for the example and every varied input tried{tried}; inputs for which it would "
            f"not are computed wrongly.{differs}"
        )


class _Answers(TorchFunctionMode):
    """Watches, or replaces, every reading of a truth value; keeps size arithmetic out of tensors."""

    def __init__(self, given: Mapping[Frame, bool] | None = None) -> None:
        super().__init__()
        self.given = given
        self.seen: list[Decision] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        rounding = _ROUNDING.get(kwargs.get("rounding_mode", ""))
        if func is torch.div and rounding and not any(isinstance(size, torch.Tensor) for size in args):
            return rounding(*args)
        if func in (torch.Tensor.item, torch.Tensor.__bool__) and args[0].dtype == torch.bool:
            return self._answer(func, args[0])
        return func(*args, **kwargs)

    def _answer(self, func: Any, tensor: torch.Tensor) -> Any:
        frame = reading_frame()
        if self.given is not None and frame in self.given:
            return self.given[frame]
        answer = func(tensor)
        if self.given is None and frame is not None:
            self.seen.append(Decision(frame, bool(answer)))
        return answer


class _Comparisons(TorchFunctionMode):
    """Watches what numbers integers are compared with."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[int, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _EQUALITIES and len(args) == 2 and type(args[1]) is int and _is_ids(args[0]):
            self.numbers[args[1]] = None
        return func(*args, **(kwargs or {}))


def _is_ids(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64) and value.dim() > 0


def looked_for(module: torch.nn.Module, examples: Examples) -> tuple[int, ...]:
    """The first numbers that a model compares integers with: the id of padding, say, which examples seldom hold."""
    watch = _Comparisons()
    with contextlib.suppress(Exception), watch:
        quiet_run(module, examples)
    return tuple(watch.numbers)[:_LOOKED_FOR]


def reading_frame() -> Frame | None:
    """The line of the model's own code that asks for a tensor's value."""
    stack = [Frame(f.filename, f.lineno or 0, f.name) for f in traceback.extract_stack()]
    start = max((at for at, frame in enumerate(stack) if frame.file == trace.__code__.co_filename), default=-1)
    own = [frame for frame in stack[start + 1 :] if not frame.is_library and frame.file != __file__]
    return own[-1] if own else None


def trace_assuming(
    module: torch.nn.Module, examples: Examples, outputs: Outputs, numbers: Sequence[int] = ()
) -> tuple[ExportedProgram, tuple[Decision, ...]] | None:
    """Trace a module with its constant branches taken as given, or None when they are not constant.

    Args:
        module: The model.
        examples: Inputs and declared axes.
        outputs: Receives the names of the results.
        numbers: What the model looks for among its ids; the branches must be constant also where it is found.

    Returns:
        The program and the assumptions it rests on, by line.
    """
    answers = constant_answers(module, examples, numbers)
    if answers is None:
        return None
    for variant in size_variants(examples):
        with contextlib.suppress(Exception), _Answers(answers):
            program = trace(module, variant, outputs)
            return program, tuple(Decision(frame, value) for frame, value in answers.items())
    return None


def constant_answers(
    module: torch.nn.Module, examples: Examples, numbers: Sequence[int] = ()
) -> dict[Frame, bool] | None:
    """The answers that never differed, by line. Tracing may do without the others; if it cannot, it fails there."""
    answers: dict[Frame, set[bool]] = {}
    agreed = 0
    for inputs in (examples, *varied(examples, numbers)):
        watch = _Answers()
        try:
            with watch:
                quiet_run(module, inputs)
        except Exception:  # an input the model does not take says nothing
            continue
        agreed += 1
        for decision in watch.seen:
            answers.setdefault(decision.frame, set()).add(decision.value)
    if agreed <= _NEEDED:
        return None
    return {frame: values.pop() for frame, values in answers.items() if len(values) == 1}


def varied(examples: Examples, numbers: Sequence[int] = ()) -> Iterator[Examples]:
    """Inputs of other sizes and contents than the examples, some with each of the numbers among the ids."""
    generator = torch.Generator().manual_seed(0)
    shapes = [*size_variants(examples), *_small(examples)]
    for turn in range(_TRIED):
        variant = shapes[turn % len(shapes)]
        leaves = tuple(_redrawn(leaf, generator, turn) for leaf in variant.leaves)
        yield Examples(leaves, variant.structure)
    for variant, number in itertools.product(shapes[:2], numbers):
        leaves = tuple(_holding(leaf, number, generator) for leaf in variant.leaves)
        yield Examples(leaves, variant.structure)


def _holding(leaf: ExampleInput, number: int, generator: torch.Generator) -> ExampleInput:
    """Ids with a number among them, though not first: a row may need one real token."""
    value = leaf.value
    if not _is_ids(value) or value.numel() == 0 or int(value.max()) <= 1:
        return leaf
    places = torch.rand(value.shape, generator=generator) < 0.4
    places[..., -1:] = True
    places[..., :1] = False
    return dataclasses.replace(leaf, value=value.masked_fill(places, number))


def _small(examples: Examples) -> Iterator[Examples]:
    """Sizes 1 and 2: what always holds among many tokens may not hold for one."""
    names = examples.sizes()
    if names and not any(axis.derived for _, _, axis in examples.dynamic()):
        for size in (1, 2):
            yield examples.resized(dict.fromkeys(names, size))


def _redrawn(leaf: ExampleInput, generator: torch.Generator, turn: int) -> ExampleInput:
    value = leaf.value
    if not isinstance(value, torch.Tensor) or value.numel() == 0:
        return leaf
    return dataclasses.replace(leaf, value=_redraw(value, generator, turn))


def _redraw(value: torch.Tensor, generator: torch.Generator, turn: int) -> torch.Tensor:
    """Other contents of the same kind: new noise, other masks (on every third turn none), shuffled ids."""
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator).to(value.dtype)
    if value.dtype == torch.bool or int(value.max()) <= 1:
        if turn % 3 == 0:
            return torch.full_like(value, value.dtype != torch.bool)
        drawn = torch.rand(value.shape, generator=generator) < 0.6
        drawn[..., 0] = True
        return drawn.to(value.dtype)
    order = torch.randperm(value.numel(), generator=generator)
    return value.flatten()[order].reshape(value.shape)
