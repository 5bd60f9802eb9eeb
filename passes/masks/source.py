"""Operators that make index tensors from sizes: Shape, Range, ConstantOfShape, CumSum of ones, EyeLike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from ..graph import attribute
from .logic import as_number, zero
from .poly import Axis, Poly
from .tensor import Memo, Tensor, elements, from_elements, kind_of, literal

__all__ = ["HANDLERS", "shape_is_declared"]

Inputs = Sequence[Tensor | None]
D = ir.DataType


def shape_is_declared(node: ir.Node) -> bool:
    """Whether a Shape node can be read without looking at how its input is made."""
    value = node.inputs[0] if node.inputs else None
    if value is None or value.shape is None:
        return False
    return all(isinstance(d, int) or d.value is not None for d in value.shape)


def _shape(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    value = node.inputs[0]
    sizes = inputs[0].shape if inputs[0] is not None else memo.declared(value) if value is not None else None
    if sizes is None:
        return None
    start, end = attribute(node, "start", 0), attribute(node, "end", len(sizes))
    return from_elements(sizes[slice(start, end)], "int", D.INT64)


def _size(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    if inputs[0] is None:
        return None
    total = Poly.number(1)
    for size in inputs[0].shape:
        total = total * size
    return Tensor((), total, "int", D.INT64)


def _range(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    start, limit, delta = (t.expr if t is not None else None for t in inputs)
    if not (isinstance(start, Poly) and isinstance(delta, Poly) and inputs[0] is not None):
        return None
    step = delta.constant
    dtype = inputs[0].dtype
    exact = start.integral and dtype in (D.INT32, D.INT64, D.FLOAT, D.DOUBLE)
    if not isinstance(step, int) or not step or not exact:
        return None
    count = limit - start if step == 1 and isinstance(limit, Poly) and limit.integral else None
    if count is None or not count.never_negative():
        count = memo.fresh(node.outputs[0], 1)[0]
    return Tensor((count,), start + delta * Poly.atom(Axis(0)), inputs[0].kind, dtype)


def _constant_of_shape(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    shape = elements(inputs[0])
    if shape is None:
        return None
    tensor = attribute(node, "value")
    if tensor is None:
        return Tensor(tuple(shape), literal(0), "float", D.FLOAT)
    kind = kind_of(tensor.dtype)
    item = tensor.numpy().reshape(-1)[0].item()
    if kind is None:
        return None
    return Tensor(tuple(shape), bool(item) if kind == "bool" else literal(item), kind, tensor.dtype)


def _cumsum(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data, axes = inputs[0], elements(inputs[1])
    if data is None or data.kind == "bool" or axes is None or len(axes) != 1:
        return None
    item, axis = data.expr, axes[0].constant
    step = item.constant if isinstance(item, Poly) else None
    if not isinstance(step, int) or not isinstance(axis, int) or not -data.rank <= axis < data.rank:
        return None
    axis %= data.rank
    count = Poly.atom(Axis(axis))
    if attribute(node, "reverse", 0):
        count = (data.shape[axis] - count).shift(-1)
    if not attribute(node, "exclusive", 0):
        count = count.shift(1)
    return Tensor(data.shape, Poly.number(step) * count, data.kind, data.dtype)


def _eye_like(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data = inputs[0]
    if data is None or data.rank != 2:
        return None
    dtype = ir.DataType(attribute(node, "dtype", data.dtype or 0))
    kind = kind_of(dtype)
    if kind is None:
        return None
    hit = zero((Poly.atom(Axis(1)) - Poly.atom(Axis(0))).shift(-attribute(node, "k", 0)))
    return Tensor(data.shape, hit if kind == "bool" else as_number(hit), kind, dtype)


HANDLERS: Final = {
    "Shape": _shape,
    "Size": _size,
    "Range": _range,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumsum,
    "EyeLike": _eye_like,
}
