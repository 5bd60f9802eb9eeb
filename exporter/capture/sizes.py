"""Choosing sizes for dynamic axes so that no two of them are equal by accident."""

from __future__ import annotations

import math
from collections.abc import Iterator

import sympy
import torch
from torch.export import ExportedProgram

from .inputs import Axis, Examples
from .trace import user_tensors

__all__ = ["axis_symbols", "highest_size", "lowest_size", "size_variants", "sizes_made", "unused_size"]


def size_variants(examples: Examples) -> Iterator[Examples]:
    """The examples at the sizes worth tracing at, best first.

    A size of 0 or 1, or one that equals another axis, lets torch conclude things that hold for the example only.
    So the first variant has distinct sizes of 2 and more; the examples as given follow (a model may accept only
    those), and then sizes that all differ from the given ones.
    """
    given = examples.sizes()
    if not given:
        yield examples
        return
    distinct = _distinct(examples, given)
    if distinct != given:
        yield examples.resized(distinct)
    yield examples
    taken = set().union(
        *(sizes_made(examples, name, size) for made in (given, distinct) for name, size in made.items())
    )
    shifted: dict[str, int] = {}
    for name, size in distinct.items():
        shifted[name] = unused_size(examples, name, size, taken)
        taken |= sizes_made(examples, name, shifted[name])
    yield examples.resized(shifted)


def _distinct(examples: Examples, given: dict[str, int]) -> dict[str, int]:
    taken = _fixed_sizes(examples)
    chosen: dict[str, int] = {}
    for name, size in given.items():
        made = sizes_made(examples, name, size)
        chosen[name] = size if _is_apart(made, taken) else unused_size(examples, name, size, taken)
        taken |= sizes_made(examples, name, chosen[name])
    return chosen


def _fixed_sizes(examples: Examples) -> set[int]:
    return {
        size
        for leaf in examples.tensors
        for at, size in enumerate(leaf.value.shape)
        if at not in leaf.axes or not leaf.axes[at].name
    }


def sizes_made(examples: Examples, name: str, size: int) -> set[int]:
    """The sizes of the axes that a name stands for, or that are derived from it, where it has this size."""
    return {axis.size_at(size) for axis in _axes_of(examples, name)}


def unused_size(examples: Examples, name: str, near: int, taken: set[int]) -> int:
    """The size next above ``near`` (next below, where the declared maximum ends) that makes sizes of at least 2 that
    are not taken.

    Returns ``near`` itself when the declared bounds leave nothing else.
    """
    bounds = _axes_of(examples, name)
    low = max([1, *(axis.low for axis in bounds if axis.low is not None)])
    high = min([near + len(taken) + 64, *(axis.high for axis in bounds if axis.high is not None)])
    candidates = [*range(max(near + 1, low), high + 1), *range(min(near, high), low - 1, -1)]
    return next((size for size in candidates if _is_apart(sizes_made(examples, name, size), taken)), near)


def lowest_size(examples: Examples, name: str) -> int:
    """The smallest size that an axis is declared to take, 1 where nothing is declared."""
    low = max([1, *(axis.low or 1 for axis in _axes_of(examples, name))])
    while min(sizes_made(examples, name, low), default=1) < 1:  # n - 1 of n = 1
        low += 1
    return low


def _is_apart(made: set[int], taken: set[int]) -> bool:
    return min(made) > 1 and not made & taken


def _axes_of(examples: Examples, name: str) -> list[Axis]:
    return [axis for _, _, axis in examples.dynamic() if axis.key == name]


def axis_symbols(program: ExportedProgram, examples: Examples) -> dict[sympy.Symbol, str]:
    """torch's symbols of the named axes that have a size of their own."""
    return {
        size.node.expr: axis.name
        for leaf, value in zip(examples.tensors, user_tensors(program), strict=True)
        for at, axis in leaf.axes.items()
        if axis.name and axis.name == axis.key and not axis.summed and isinstance(size := value.shape[at], torch.SymInt)
    }


def highest_size(examples: Examples, name: str) -> float:
    """The largest size that an axis is declared to take."""
    return min((axis.high for _, _, axis in examples.dynamic() if axis.key == name and axis.high), default=math.inf)
