"""Looking at rows that were put in another order, and at columns that were picked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name, producer
from ..look import FLOATS, cast_target, consumers, past_casts

__all__ = [
    "column_of",
    "columns",
    "comes_from",
    "computed_from",
    "gathered",
    "leads_to",
    "onwards",
    "rank",
    "rows_of",
    "unrolled",
]

#: No chain of index arithmetic, and no activation, is longer than this.
REACH: Final = 40


def rank(value: ir.Value) -> int | None:
    """The number of axes, or None."""
    shape = dims(value)
    return None if shape is None else len(shape)


def gathered(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(table, index) when the value is ``table[index]`` along the first axis, with an index of one axis."""
    node = producer(past_casts(value), "Gather", "GatherND")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    index = rows_of(node)
    return None if index is None else (past_casts(node.inputs[0]), index)


def rows_of(node: ir.Node) -> ir.Value | None:
    """The index of a Gather of whole rows, or of what scatters whole rows, as :func:`unrolled` returns it."""
    index = node.inputs[1]
    shape = dims(index)
    if index is None or shape is None:
        return None
    if node.op_type == "Gather":
        return unrolled(index) if len(shape) == 1 and attribute(node, "axis", 0) == 0 else None
    return unrolled(index) if shape[1:] == (1,) and attribute(node, "batch_dims", 0) == 0 else None


def unrolled(value: ir.Value) -> ir.Value:
    """What a vector, or a column, is a view of: another one, or (N, K) with N * K elements in the same order."""
    while True:
        value = past_casts(value)
        node = producer(value, "Reshape", "Unsqueeze", "Squeeze", "Transpose")
        source = None if node is None else node.inputs[0]
        here, there = dims(value), dims(source)
        if node is None or source is None or here is None or there is None or len(there) > 2 or here[1:] not in _THIN:
            return value
        if there[1:] not in _THIN:
            return past_casts(source) if node.op_type == "Reshape" else value
        value = source


#: Axes after the first of a vector and of a column.
_THIN: Final = ((), (1,))


def column_of(value: ir.Value, axes: int) -> ir.Value | None:
    """x when the value is x with one more axis, of size 1, at the end, and has ``axes`` axes."""
    value = past_casts(value)
    node = producer(value, "Unsqueeze", "Reshape")
    if node is None or node.inputs[0] is None:
        return None
    x, shape = past_casts(node.inputs[0]), dims(value)
    if shape is None or len(shape) != axes or shape[-1] != 1 or rank(x) != axes - 1:
        return None
    return x


def computed_from(value: ir.Value, source: ir.Value) -> bool:
    """Whether a value is made of ``source`` and constants by standard operators, in a few steps."""
    waiting, seen, found = [value], set[int](), False
    while waiting:
        current = waiting.pop()
        if current is source:
            found = True
            continue
        if id(current) in seen or current.const_value is not None:
            continue
        seen.add(id(current))
        node = current.producer()
        if node is None or node.domain or len(seen) > REACH:
            return False
        waiting.extend(v for v in node.inputs if v is not None)
    return found


def leads_to(value: ir.Value, wanted: Callable[[ir.Node], bool]) -> ir.Node | None:
    """The first node of this kind that a value flows into, in a few steps."""
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < REACH:
        for node in consumers(waiting.pop(0)):
            if wanted(node):
                return node
            if id(node) not in seen:
                seen.add(id(node))
                waiting.extend(node.outputs)
    return None


def comes_from(value: ir.Value, wanted: Callable[[ir.Node], bool]) -> ir.Node | None:
    """The first node of this kind that flows into a value, in a few steps."""
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < REACH:
        node = waiting.pop(0).producer()
        if node is not None and wanted(node):
            return node
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            waiting.extend(v for v in node.inputs if v is not None)
    return None


def onwards(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read a value, also past casts between floats; the casts come too, after the others."""
    casts = []
    for node in consumers(value):
        if op_name(node) == "Cast" and value.dtype in FLOATS and cast_target(node) in FLOATS:
            casts.append(node)
        else:
            yield node
    for node in casts:
        yield from onwards(node.outputs[0])


def columns(value: ir.Value) -> tuple[ir.Value, np.ndarray] | None:
    """(x, indices) when the value is ``x[:, indices]``, however slices and splits say it; None without a width.

    x is a value that no such operator makes.
    """
    value = past_casts(value)
    node = producer(value, "Slice", "Split", "Gather")
    if node is None or node.inputs[0] is None:
        shape = dims(value)
        width = None if shape is None else shape[-1]
        return (value, np.arange(width)) if isinstance(width, int) else None
    within = columns(node.inputs[0])
    if within is None:
        return None
    picked = _PICK[node.op_type](node, value, within[1])
    return None if picked is None else (within[0], picked)


def _last(node: ir.Node, axis: int | None) -> bool:
    assert node.inputs[0] is not None
    axes = rank(node.inputs[0])
    return axis is not None and axes is not None and axis % axes == axes - 1


def _slice(node: ir.Node, value: ir.Value, from_: np.ndarray) -> np.ndarray | None:
    del value
    numbers = [constant(v) for v in node.inputs[1:]]
    if len(numbers) < 3 or any(n is None or n.size != 1 for n in numbers):
        return None
    start, end, axis, *step = (int(n.reshape(-1)[0]) for n in numbers if n is not None)
    return from_[slice(start, end, *step)] if _last(node, axis) and all(s > 0 for s in step) else None


def _split(node: ir.Node, value: ir.Value, from_: np.ndarray) -> np.ndarray | None:
    if not _last(node, int(attribute(node, "axis", 0))):
        return None
    place = next(i for i, o in enumerate(node.outputs) if o is value)
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if sizes is None:
        if len(from_) % len(node.outputs) or len(node.inputs) > 1:
            return None
        sizes = np.full(len(node.outputs), len(from_) // len(node.outputs))
    ends = np.cumsum(sizes)
    return from_[int(ends[place] - sizes[place]) : int(ends[place])]


def _gather(node: ir.Node, value: ir.Value, from_: np.ndarray) -> np.ndarray | None:
    del value
    index = constant(node.inputs[1])
    fits = index is not None and index.ndim == 1 and _last(node, int(attribute(node, "axis", 0)))
    return from_[index] if fits else None


_PICK: Final = {"Slice": _slice, "Split": _split, "Gather": _gather}
