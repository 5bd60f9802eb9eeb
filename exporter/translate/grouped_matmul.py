"""Grouped matrix products (mixture of experts) -> one ``deployml.canonical::GroupedMatMul`` node."""

from __future__ import annotations

from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from onnxscript import evaluator
from onnxscript import opset18 as op

from ...passes.canonical import DOMAIN
from ...passes.canonical_experts import NAME
from ...passes.graph import attribute
from ...runtime.errors import UnsupportedError

__all__ = ["grouped_matmul_table"]

#: Ops of the meaning ``output[start:end] = input[start:end] @ weight[e]``, rows sorted by expert, ``end`` and
#: ``start`` neighbours in ``offs``; the second one exists when a program that came from transformers uses it.
_OPS: Final = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")

_schema = onnx.defs.OpSchema

#: Schema of what this translation emits; the op itself is described in ``passes/canonical_experts.py``.
_GROUPED: Final = _schema(
    NAME,
    DOMAIN,
    1,
    inputs=[
        _schema.FormalParameter("rows", "T"),
        _schema.FormalParameter("weight", "T"),
        _schema.FormalParameter("ends", "I"),
    ],
    outputs=[_schema.FormalParameter("output", "T")],
    type_constraints=[
        ("T", ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"], ""),
        ("I", ["tensor(int32)", "tensor(int64)"], ""),
    ],
    attributes=[_schema.Attribute(name, onnx.defs.OpSchema.AttrType.INT, "") for name in ("groups", "transposed")],
)


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

    A weight that is transposed for the call is handed over as it is stored. Rows after the last offset belong to no
    expert and are 0.
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
    stored = _transposed(weight)
    operands = [input, weight if stored is None else stored, offs]
    result = evaluator.default().eval(_GROUPED, operands, {"groups": experts, "transposed": int(stored is not None)})
    result.dtype, result.shape = input.dtype, ir.Shape([input.shape[0], weight.shape[2]])
    return result if out_dtype in (None, -1) else op.Cast(result, to=int(out_dtype))


def _transposed(weight: ir.Value) -> ir.Value | None:
    """What is stored, (E, out, in), where a weight is its transpose; None where the weight itself is stored."""
    node = weight.producer()
    if node is None or node.op_type != "Transpose" or node.domain or tuple(attribute(node, "perm", ())) != (0, 2, 1):
        return None
    return node.inputs[0]
