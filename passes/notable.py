"""Integers that a proof must try: those beside every constant that a sub-graph compares with, and ids in general.

Padding patterns of 0 and 1 show what a mask does. They do not tell ``ids != 50256`` from ``ids != 50257``, nor a
segment 2 from a segment 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from .graph import attribute, constant, op_name
from .symbols import free_names, size_of

__all__ = ["Ids", "notable", "takes_ids"]

#: Ids that stand for all others: several of each in a row of five, so that equal ones meet.
_GENERAL: Final = 4
#: Ids of a wide range, for what compares them with each other, stay below.
_WIDE: Final = 1 << 10
#: Constants beyond this are no ids: infinities, the ends of slices, the lowest number of a type.
_LARGEST: Final = 1 << 24
#: Longest constant that is a list of ids, not a table.
_LIST: Final = 64
#: Operators whose result turns on how an integer compares with a constant.
_COMPARES: Final = frozenset(
    "Equal,Less,LessOrEqual,Greater,GreaterOrEqual,Mod,Min,Max,Clip,Add,Sub,Div,BitwiseAnd,BitShift".split(",")  # noqa: SIM905
)
#: Operators that look values up by index, and where their table and index stand.
_LOOK_UPS: Final = frozenset({"Gather", "GatherElements", "GatherND"})
#: Operators that hand integers on unchanged.
_HANDS_ON: Final = frozenset(
    "Cast,Concat,Expand,Flatten,Identity,Reshape,Slice,Squeeze,Transpose,Unsqueeze".split(",")  # noqa: SIM905
)

Size = int | ir.SymbolicDim


@dataclass(frozen=True, slots=True)
class Ids:
    """Integers worth trying.

    Attributes:
        near: Every constant that is compared with, and its neighbours on both sides, sorted.
        bounds: Sizes of the tables that a value indexes, and what is added to it before, by ``id(value)``.
        limit: No integer reaches this; None where only tables bound them.
    """

    near: tuple[int, ...] = ()
    bounds: Mapping[int, tuple[tuple[Size, int], ...]] = field(default_factory=dict)
    limit: int | None = None

    def draw(
        self, value: ir.Value, shape: Sequence[int], sizes: Mapping[str, int], rng: np.random.Generator
    ) -> np.ndarray:
        """An integer array: rows of mixed ids, of padded ids, of ascending segments and of positions, in turn."""
        assert value.dtype is not None
        low, high, table = self._range(value, sizes)
        special = [n for n in (*self.near, *table) if low <= n < high] or [max(low, 0)]
        width, count = shape[-1] if shape else 1, math.prod(shape)
        near = rng.permutation(np.resize(np.array(special, np.int64), count)).reshape(-1, width)
        far = max(n for n in (0, *special) if n <= _WIDE) + _GENERAL
        rows = np.stack([_row(row, number, far, rng) for number, row in enumerate(near)])
        return (low + (rows.reshape(shape) - low) % (high - low)).astype(value.dtype.numpy())

    def narrower(self) -> tuple[Ids, ...]:
        """These ids, then fewer of them: for a table whose index is computed in ways that are not followed here."""
        return (self, *(replace(self, limit=limit) for limit in (64, 8, _GENERAL, 3)))

    def _range(self, value: ir.Value, sizes: Mapping[str, int]) -> tuple[int, int, tuple[int, ...]]:
        """The smallest integer a value may hold, the one after the largest, and those that reach rows of its tables."""
        assert value.dtype is not None
        limits = np.iinfo(value.dtype.numpy())
        low, high, table = max(int(limits.min), -_LARGEST), min(int(limits.max), _LARGEST) + 1, tuple[int, ...]()
        for size, added in self.bounds.get(id(value), ()):
            if isinstance(size, int) or all(name in sizes for name in free_names(size)):
                known = size if isinstance(size, int) else size_of(size, sizes)
                low, high = max(low, -added), min(high, known - added)
                table += tuple(n - added for n in (*range(min(known, _LIST)), known - 1))
        if self.limit is not None:
            low, high = max(low, 0), min(high, self.limit)
        return low, max(high, low + 1), table


def _row(near: np.ndarray, number: int, far: int, rng: np.random.Generator) -> np.ndarray:
    """One row: special ids among others, padding by one, segments, positions, ids of a wide range, special ones."""
    kind, width = number % 6, len(near)
    common = rng.integers(0, _GENERAL, width)
    if kind == 0:
        return np.where(rng.integers(0, 2, width) > 0, near, common)
    if kind == 1:
        return np.where(np.arange(width) < rng.integers(0, width + 1), common, near[0])
    if kind == 2:
        return np.sort(common)
    if kind == 3:
        return np.where(np.arange(width) == rng.integers(0, width), near, np.arange(width))
    return rng.integers(0, far, width) if kind == 4 else near


def takes_ids(value: ir.Value) -> bool:
    """Whether a value holds integers that are no flags."""
    return value.dtype is not None and value.dtype.is_integer()


def notable(values: Iterable[ir.Value], nodes: Sequence[ir.Node]) -> Ids | None:
    """What to draw for the integer inputs of a sub-graph; None when it has none.

    Args:
        values: Its free inputs.
        nodes: Nodes of both forms.
    """
    free = {id(v) for v in values if takes_ids(v)}
    if not free:
        return None
    near = {n + step for c in _compared(nodes) for n in _whole(c) for step in (-1, 0, 1)}
    bounds: dict[int, tuple[tuple[Size, int], ...]] = {}
    for table, axis, index in _look_ups(nodes):
        size = None if table.shape is None else table.shape[axis]
        if isinstance(size, int) or (size is not None and size.value is not None):
            for key, added in _sources(index, free):
                bounds[key] = (*bounds.get(key, ()), (size, added))
    return Ids(tuple(sorted(near)), bounds)


def _compared(nodes: Iterable[ir.Node]) -> Iterator[float]:
    for node in nodes:
        if node.domain or not (node.op_type in _COMPARES or _picks_integers(node)):
            continue
        for value in node.inputs:
            array = constant(value, limit=_LIST)
            if array is not None and array.dtype.kind in "iuf":
                yield from (float(n) for n in array.reshape(-1))


def _picks_integers(node: ir.Node) -> bool:
    return node.op_type == "Where" and node.inputs[1] is not None and takes_ids(node.inputs[1])


def _whole(number: float) -> tuple[int, ...]:
    if not math.isfinite(number) or abs(number) > _LARGEST:
        return ()
    return (math.floor(number), math.ceil(number))


def _look_ups(nodes: Iterable[ir.Node]) -> Iterator[tuple[ir.Value, int, ir.Value]]:
    """(table, axis, indices) of every look-up whose table has a known rank."""
    for node in nodes:
        if op_name(node) not in _LOOK_UPS or node.inputs[0] is None or node.inputs[1] is None:
            continue
        if node.inputs[0].shape is not None:
            axis = 0 if node.op_type == "GatherND" else int(attribute(node, "axis", 0))
            yield node.inputs[0], axis, node.inputs[1]


def _sources(index: ir.Value, free: set[int]) -> Iterator[tuple[int, int]]:
    """The free inputs that an index is, and the number that is added to each on the way."""
    waiting, seen = [(index, 0)], {id(index)}
    while waiting:
        value, added = waiting.pop()
        if id(value) in free:
            yield id(value), added
            continue
        node = value.producer()
        if node is None or node.domain:
            continue
        shift = _added(node) if node.op_type in ("Add", "Sub") else 0 if node.op_type in _HANDS_ON else None
        operands = node.inputs if node.op_type == "Concat" else [v for v in node.inputs if constant(v) is None][:1]
        for operand in operands if shift is not None else ():
            if operand is not None and id(operand) not in seen:
                seen.add(id(operand))
                waiting.append((operand, added + shift))


def _added(node: ir.Node) -> int | None:
    """The constant that a sum or difference adds to its other operand."""
    left, right = (constant(v, limit=1) for v in node.inputs[:2])
    if right is not None and right.size == 1:
        number = int(right.reshape(-1)[0])
        return number if node.op_type == "Add" else -number
    return int(left.reshape(-1)[0]) if node.op_type == "Add" and left is not None and left.size == 1 else None
