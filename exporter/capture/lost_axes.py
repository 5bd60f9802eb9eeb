"""Finding declared dynamic axes that the model fixes, and the line that does it."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ...runtime.errors import UnsupportedError
from ..source_map import Frame
from .inputs import Axis, Examples
from .trace import fixed_size, trace, user_tensors

__all__ = ["LostAxis", "environment_of", "fixed_axes", "lost_axes", "lost_axes_error", "merged_axes"]

_HINT: Final = (
    "Let that line use the size as it comes (x.shape[1], not int(x.shape[1]) and no Python loop over it), "
    "or leave the axis fixed."
)


@dataclasses.dataclass(frozen=True)
class LostAxis:
    """A declared dynamic axis that is fixed in the traced program.

    Attributes:
        input: Name of the input.
        at: Axis number.
        axis: Its declaration.
        size: The size it was fixed to.
        frame: The line of the model that fixed it, where known.
    """

    input: str
    at: int
    axis: Axis
    size: int
    frame: Frame | None = None

    def __str__(self) -> str:
        name = f" ('{self.axis.name}')" if self.axis.name else ""
        line = f" by the line `{self.frame.code}` ({self.frame.where})" if self.frame else ""
        return f"axis {self.at}{name} of input '{self.input}' is fixed to {self.size}{line}"


def lost_axes(program: ExportedProgram, examples: Examples) -> list[LostAxis]:
    """The declared axes that are no symbol in a program."""
    lost = []
    for leaf, value in zip(examples.tensors, user_tensors(program), strict=True):
        for at, axis in sorted(leaf.axes.items()):
            size = fixed_size(value.shape[at])
            if size is not None:
                lost.append(LostAxis(leaf.name, at, axis, size))
    return lost


def merged_axes(program: ExportedProgram, examples: Examples) -> list[tuple[str, str]]:
    """Pairs of axis names that are one symbol in a program."""
    first: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for leaf, value in zip(examples.tensors, user_tensors(program), strict=True):
        for at, axis in sorted(leaf.axes.items()):
            if fixed_size(value.shape[at]) is not None:
                continue
            symbol = str(value.shape[at])
            name = first.setdefault(symbol, axis.name)
            if axis.name and name and axis.name != name and (name, axis.name) not in pairs:
                pairs.append((name, axis.name))
    return pairs


def fixed_axes(module: torch.nn.Module, examples: Examples) -> list[LostAxis]:
    """The axes that torch fixes where it is free to, each with its line; none when that trace fails too."""
    culprits: dict[str, Frame] = {}
    try:
        with _recorded(culprits):
            program = trace(module, _relaxed(examples))
    except Exception:  # the caller has another failure to report
        return []
    return [
        dataclasses.replace(axis, frame=culprits.get(_symbol_of(program, axis)))
        for axis in lost_axes(program, examples)
    ]


def lost_axes_error(module: torch.nn.Module, examples: Examples, name: str) -> UnsupportedError | None:
    """Trace once more with torch free to fix axes, and report those it fixed; None when there are none."""
    lost = fixed_axes(module, examples)
    if not lost:
        return None
    where = next((axis.frame.where for axis in lost if axis.frame), None)
    text = "; ".join(str(axis) for axis in lost)
    return UnsupportedError(f"The model '{name}' loses a dynamic axis: {text}.", hint=_HINT, where=where)


def _relaxed(examples: Examples) -> Examples:
    leaves = []
    for leaf in examples.leaves:
        axes = {at: dataclasses.replace(axis, automatic=True) for at, axis in leaf.axes.items()}
        leaves.append(dataclasses.replace(leaf, axes=axes))
    return Examples(tuple(leaves), examples.structure)


def _symbol_of(program: ExportedProgram, lost: LostAxis) -> str:
    """torch's symbol for an axis before it was fixed; "" when torch no longer knows."""
    environment = environment_of(program)
    top, *rest = lost.input.split(".")
    keys = "".join(f"[{key}]" if key.isdigit() else f"['{key}']" for key in rest)
    # Arguments of ``*args`` have names of their own there: args_0.
    wanted = {f"L['{name}']{of}.size()[{lost.at}]" for name, of in ((top, keys), ("_".join([top, *rest]), ""))}
    for symbol, sources in getattr(environment, "var_to_sources", {}).items():
        if any(_name(source) in wanted for source in sources):
            return str(symbol)
    return ""


def _name(source: Any) -> str:
    return source.name() if callable(source.name) else source.name


def environment_of(program: ExportedProgram) -> ShapeEnv | None:
    """Where torch keeps the symbols and guards of a program; None where no input has a size that varies."""
    for value in user_tensors(program):
        mode = getattr(value, "fake_mode", None)
        if mode is not None:
            return mode.shape_env
    return None


@contextlib.contextmanager
def _recorded(culprits: dict[str, Frame]) -> Iterator[None]:
    """Note the model's line at which torch replaces a size symbol by a number.

    torch keeps only its own innermost line with the replacement, so the method that makes it is wrapped; where
    a later torch has no such method the line is simply not named.
    """
    original = getattr(ShapeEnv, "_set_replacement", None)
    if original is None:
        yield
        return

    def noting(self: ShapeEnv, symbol: Any, target: Any, reason: str) -> None:
        frame = _innermost_user_frame()
        if frame is not None and getattr(target, "is_number", False):
            culprits.setdefault(str(symbol), frame)
        original(self, symbol, target, reason)

    ShapeEnv._set_replacement = noting  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShapeEnv._set_replacement = original  # type: ignore[method-assign]


def _innermost_user_frame() -> Frame | None:
    stack = [Frame(f.filename, f.lineno or 0, f.name) for f in traceback.extract_stack()]
    start = max((at for at, frame in enumerate(stack) if frame.file == trace.__code__.co_filename), default=-1)
    own = [frame for frame in stack[start + 1 : -2] if not frame.is_library]
    return own[-1] if own else None
