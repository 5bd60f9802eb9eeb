"""Slice as an index map, and the axes an operator is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from ..graph import attribute
from .poly import ZERO, Axis, Poly
from .tensor import Memo, Tensor, elements

__all__ = ["axes_given", "slice_"]

Inputs = Sequence[Tensor | None]
#: Slice ends from here on mean "to the end".
_FAR: Final = 1 << 30


def axes_given(node: ir.Node, inputs: Inputs, rank: int, position: int = 1) -> list[int] | None:
    """The axes given as an input (opset 13) or attribute, counted from the left."""
    given: Sequence[int] | None = attribute(node, "axes")
    if len(inputs) > position:
        listed = elements(inputs[position])
        given = None if listed is None else _numbers(listed)
    if given is None or any(not -rank <= a < rank for a in given):
        return None
    return [a % rank for a in given]


def _numbers(items: Sequence[Poly]) -> list[int] | None:
    numbers = [i.constant for i in items]
    return numbers if all(isinstance(n, int) for n in numbers) else None  # type: ignore[return-value]


def slice_(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    """Slice with known axes and forward steps; None where they are not."""
    data = inputs[0]
    if data is None or len(inputs) < 3:
        return None
    starts, ends = elements(inputs[1]), elements(inputs[2])
    if starts is None:
        return None
    given = [len(inputs) > k and node.inputs[k] is not None for k in (3, 4)]
    axes = axes_given(node, inputs, data.rank, 3) if given[0] else [*range(len(starts))]
    steps = _numbers(elements(inputs[4]) or ()) if given[1] else [1] * len(starts)
    if axes is None or steps is None or not len(axes) == len(starts) == len(steps):
        return None
    shape, mapping = list(data.shape), {}
    for k, axis in enumerate(axes):
        first = _start(starts[k], data.shape[axis])
        if first is None or steps[k] < 1:
            return None
        mapping[axis] = first + Poly.number(steps[k]) * Poly.atom(Axis(axis))
        end = None if ends is None else ends[k]
        size = _length(first, end, data.shape[axis], steps[k])
        if size is None:
            size = memo.fresh(node.outputs[0], data.rank)[axis]
            rows = data.shape[axis].constant
            whole = first == ZERO and steps[k] == 1 and isinstance(rows, int) and rows > 1
            if whole and end is not None and end.never_negative():
                memo.clamps[size] = end
        shape[axis] = size
    return data.at(mapping, shape)


def _start(start: Poly, size: Poly) -> Poly | None:
    """First index of a slice that is not empty; None where the sign of the start is not proven."""
    if start.never_negative():
        return start  # beyond the end the slice is empty, and any index map is true of it
    number = start.constant
    if not isinstance(number, int):
        return ZERO if -start == size else None
    known = size.constant
    if isinstance(known, int):
        return Poly.number(max(known + number, 0))
    # A slice that is not empty comes from an axis of at least one element.
    return size.shift(-1) if number == -1 else size + start if (size + start).never_negative() else None


def _length(first: Poly, end: Poly | None, size: Poly, step: int) -> Poly | None:
    """Elements of a slice, where no clamp is in doubt."""
    if end is None:
        return None
    number, known, begin = end.constant, size.constant, first.constant
    if isinstance(number, int) and number >= _FAR:
        end = size
    elif isinstance(number, int) and number < 0:
        end = size + end
    elif not (size - end).never_negative():
        if not isinstance(known, int) or not isinstance(number, int):
            return None
        end = Poly.number(min(known, number))
    count = end - first
    if step == 1 and (begin == 0 or count.never_negative()) and end.never_negative():
        return count
    total = count.constant
    return Poly.number(max(-(-total // step), 0)) if isinstance(total, int) else None
