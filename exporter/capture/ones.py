"""Computed sizes that are 1 in the examples (one frame, one block of positions), which torch takes for a constant.

An axis itself is never traced at size 1, but what the model makes of it may be: 400 samples are one frame of speech,
7 positions one block of 64. torch then concludes what holds for one alone (it is broadcast, its strides do not
count), and guards the program with that equation. Traced at a longer input the same size varies. Whether the longer
trace also holds where it is 1 is not read from the code but tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Final

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from ...runtime.feeds import signals
from .inputs import ExampleInput, Examples
from .limits import agree, undeclared_limits
from .lost_axes import environment_of, lost_axes, merged_axes
from .outputs import Outputs
from .sizes import axis_symbols, highest_size, lowest_size
from .trace import trace

__all__ = ["fixed_equations", "sizes_beyond", "trace_beyond_ones"]

#: A computed size of this many is mistaken for nothing else.
_ENOUGH: Final = 3
#: No axis is made longer than this, as attention is quadratic, but for a signal, with so many elements in all.
_FAR: Final = 2048
_FAR_SIGNAL: Final = 1 << 16
_MOST_ELEMENTS: Final = 1 << 21
#: So many lengths are tried for one program.
_TRIED: Final = 4
_RESTS: Final = frozenset({"Mod", "PythonMod"})


def fixed_equations(program: ExportedProgram) -> list[tuple[sympy.Expr, int]]:
    """Computed sizes that a program was traced for one value of, with that value."""
    environment = environment_of(program)
    guards = (guard.expr for guard in getattr(environment, "guards", ()))
    equations = (guard for guard in guards if isinstance(guard, sympy.Eq) and guard.rhs.is_Integer)
    return [
        (equation.lhs, int(equation.rhs))
        for equation in equations
        if not equation.lhs.is_Symbol and type(equation.lhs).__name__ not in _RESTS
    ]


def sizes_beyond(program: ExportedProgram, examples: Examples) -> Iterator[dict[str, int]]:
    """Sizes of named axes, a few, at which a computed size is another than the one the program was traced for.

    Axes that are declared as expressions alone (``8 * Dim("n")``) are left out.
    """
    symbols, limits = axis_symbols(program, examples), undeclared_limits(program, examples)
    found: dict[tuple[str, int], None] = {}
    for size, value in fixed_equations(program):
        for name in sorted({symbols[symbol] for symbol in size.free_symbols & symbols.keys()}):
            highest = min(_farthest(examples, name), highest_size(examples, name), limits.get(name, math.inf))
            longer = _length_where(size, value, name, symbols, examples, highest)
            if longer is not None:
                found[name, longer] = None
    yield from ({name: length} for name, length in list(found)[:_TRIED])


def trace_beyond_ones(
    module: torch.nn.Module, program: ExportedProgram, examples: Examples, outputs: Outputs, *, whole: bool = False
) -> ExportedProgram | None:
    """A program without the computed sizes of 1 of another one; None where there are none, or no such program.

    The longer trace is taken only when it equals the model at its own sizes and at the given ones.

    Args:
        module: The model.
        program: Its trace at the given sizes.
        examples: Inputs and declared axes.
        outputs: Receives the names of the results.
        whole: Whether ``int`` of a size was a size in that trace.
    """
    if all(value != 1 for _, value in fixed_equations(program)):
        return None
    sizes: dict[str, int] = {}
    for found in sizes_beyond(program, examples):
        sizes |= {name: max(size, sizes.get(name, 0)) for name, size in found.items()}
    if not sizes:
        return None
    longer = examples.resized(sizes)
    try:
        found = trace(module, longer, outputs, whole=whole)
    except Exception:  # the size is the model's own
        return None
    if lost_axes(found, longer) or merged_axes(found, longer) or any(v == 1 for _, v in fixed_equations(found)):
        return None
    if not (agree(module, found, longer) and agree(module, found, examples)):
        return None
    _begin_where_it_holds(module, found, program, examples)
    return found


def _farthest(examples: Examples, name: str) -> int:
    """The longest that an axis may be made."""
    if name not in signals(_described(leaf) for leaf in examples.tensors):
        return _FAR
    each = max(leaf.value.numel() for leaf in examples.tensors) // max(1, examples.sizes()[name])
    return min(_FAR_SIGNAL, _MOST_ELEMENTS // max(1, each))


def _described(leaf: ExampleInput) -> tuple[str, str, list[int | str]]:
    shape = [leaf.axes[at].name or size if at in leaf.axes else size for at, size in enumerate(leaf.value.shape)]
    return leaf.name, str(leaf.value.dtype).removeprefix("torch."), shape


def _length_where(
    size: sympy.Expr, value: int, name: str, symbols: dict[sympy.Symbol, str], examples: Examples, highest: float
) -> int | None:
    """The first tried length of an axis at which a computed size is well beyond a value."""
    given = examples.sizes()
    for step in itertools.count(1):
        length = max(given[name] + step, int(given[name] * 1.25**step), lowest_size(examples, name))
        if length > highest:
            return None
        at = {symbol: length if axis == name else given[axis] for symbol, axis in symbols.items()}
        found = _evaluated(size, at)
        if found is not None and found >= value - 1 + _ENOUGH:
            return length
    return None


def _evaluated(size: sympy.Expr, at: dict[sympy.Symbol, int]) -> int | None:
    try:
        found = size.subs(at)
        return int(found) if found.is_Integer else None
    except Exception:  # a function that sympy cannot evaluate, or a symbol that is no axis
        return None


def _begin_where_it_holds(
    module: torch.nn.Module, program: ExportedProgram, before: ExportedProgram, examples: Examples
) -> None:
    """Let axes begin where they did in the shorter trace, if the program equals the model there, or at the example."""
    given, ranges = examples.sizes(), program.range_constraints
    for symbol, name in axis_symbols(program, examples).items():
        known, now = before.range_constraints.get(symbol), ranges.get(symbol)
        if known is None or now is None or known.lower >= now.lower:
            continue
        low = max(int(known.lower), lowest_size(examples, name))
        holds = agree(module, program, examples.resized({name: low}))
        ranges[symbol] = ValueRanges(low if holds else min(given[name], int(now.lower)), now.upper)
