"""Branches on tensor values that never go the other way: taken as the examples take them, and said so.

Some models ask a tensor whether a rare feature is in use (Longformer: is any position global?) and branch on the
answer. A graph cannot branch so. When the answer is the same on the examples and on varied inputs (other sizes,
other values, other masks), the model is traced with that answer, and the assumption is reported. When it ever
differs, the model is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.overrides import TorchFunctionMode

from ..source_map import Frame
from .inputs import ExampleInput, Examples
from .outputs import Outputs
from .sizes import size_variants
from .trace import quiet_run, trace

__all__ = ["Decision", "constant_answers", "reading_frame", "trace_assuming", "varied"]

#: How many varied inputs must give the same answers, and how many are tried.
_NEEDED: Final = 4
_TRIED: Final = 10

_ROUNDING: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "floor": lambda a, b: a // b,
    # Sizes are not negative, so rounding towards zero is rounding down.
    "trunc": lambda a, b: a // b,
}


@dataclasses.dataclass(frozen=True)
class Decision:
    """A truth value that Python read from a tensor at one line of the model."""

    frame: Frame
    value: bool

    def note(self) -> str:
        """The assumption as a sentence."""
        return (
            f"The graph assumes that `{self.frame.code}` ({self.frame.where}) gives {self.value}, as it did for the "
            "example and every varied input tried; inputs for which it would not are computed wrongly."
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


def reading_frame() -> Frame | None:
    """The line of the model's own code that asks for a tensor's value."""
    stack = [Frame(f.filename, f.lineno or 0, f.name) for f in traceback.extract_stack()]
    start = max((at for at, frame in enumerate(stack) if frame.file == trace.__code__.co_filename), default=-1)
    own = [frame for frame in stack[start + 1 :] if not frame.is_library and frame.file != __file__]
    return own[-1] if own else None


def trace_assuming(
    module: torch.nn.Module, examples: Examples, outputs: Outputs
) -> tuple[ExportedProgram, tuple[Decision, ...]] | None:
    """Trace a module with its constant branches taken as given, or None when they are not constant.

    Returns:
        The program and the assumptions it rests on, by line.
    """
    answers = constant_answers(module, examples)
    if answers is None:
        return None
    for variant in size_variants(examples):
        with contextlib.suppress(Exception), _Answers(answers):
            program = trace(module, variant, outputs)
            return program, tuple(Decision(frame, value) for frame, value in answers.items())
    return None


def constant_answers(module: torch.nn.Module, examples: Examples) -> dict[Frame, bool] | None:
    """The answers that never differed, by line. Tracing may do without the others; if it cannot, it fails there."""
    answers: dict[Frame, set[bool]] = {}
    agreed = 0
    for inputs in (examples, *varied(examples)):
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


def varied(examples: Examples) -> Iterator[Examples]:
    """Inputs of other sizes and contents than the examples."""
    generator = torch.Generator().manual_seed(0)
    shapes = [*size_variants(examples), *_small(examples)]
    for turn in range(_TRIED):
        variant = shapes[turn % len(shapes)]
        leaves = tuple(_redrawn(leaf, generator, turn) for leaf in variant.leaves)
        yield Examples(leaves, variant.structure)


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
