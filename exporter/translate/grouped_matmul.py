"""Grouped matrix products (mixture of experts) -> one MatMul per expert on its own rows."""

from __future__ import annotations

from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from ...runtime.errors import UnsupportedError

__all__ = ["grouped_matmul_table"]

#: Ops of the meaning ``output[start:end] = input[start:end] @ weight[e]``, rows sorted by expert, ``end`` and
#: ``start`` neighbours in ``offs``; the second one exists when a program that came from transformers uses it.
_OPS: Final = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")


def grouped_matmul_table() -> dict[Any, Any]:
    """torch op -> translation, for the grouped matrix products this process knows."""
    table: dict[Any, Any] = {}
    for name in _OPS:
        space, _, local = name.partition("::")
        packet = getattr(getattr(torch.ops, space), local, None)
        if packet is not None:
            table[packet.default] = translate_grouped_matmul
    return table


def translate_grouped_matmul(
    input: ir.Value,
    weight: ir.Value,
    offs: ir.Value | None = None,
    bias: ir.Value | None = None,
    out_dtype: Any = None,
) -> ir.Value:
    """Emit the grouped product of input (S, in), weight (E, in, out) and offs (E,), the last row of each expert.

    Rows after the last offset belong to no expert and are 0.
    """
    if offs is None and len(input.shape) == 3 and len(weight.shape) == 3 and bias is None:
        return op.MatMul(input, weight)
    experts = weight.shape[0]
    if offs is None or bias is not None or len(input.shape) != 2 or len(weight.shape) != 3:
        raise UnsupportedError(
            "This form of grouped matrix product (ragged inner axis, or a bias) has no ONNX translation.",
            hint="Write the experts as a loop of matrix products, one per expert.",
        )
    if not isinstance(experts, int):
        raise UnsupportedError(
            "A grouped matrix product has a number of experts that varies.",
            hint="Leave the expert axis of the weights fixed.",
        )
    parts = _parts(input, weight, op.Cast(offs, to=ir.DataType.INT64.value), experts)
    result = op.Concat(*parts, axis=0)
    return result if out_dtype in (None, -1) else op.Cast(result, to=int(out_dtype))


def _parts(rows: ir.Value, weight: ir.Value, ends: ir.Value, experts: int) -> list[ir.Value]:
    first_axis = op.Constant(value_ints=[0])
    start = op.Constant(value_ints=[0])
    parts = []
    for expert in range(experts):
        end = op.Slice(ends, op.Constant(value_ints=[expert]), op.Constant(value_ints=[expert + 1]), first_axis)
        own = op.Slice(rows, start, end, first_axis)
        parts.append(op.MatMul(own, op.Gather(weight, op.Constant(value_int=expert), axis=0)))
        start = end
    left = op.Sub(op.Shape(rows, start=0, end=1), start)
    shape = op.Concat(left, op.Shape(weight, start=2, end=3), axis=0)
    parts.append(op.CastLike(op.ConstantOfShape(shape), rows))
    return parts
