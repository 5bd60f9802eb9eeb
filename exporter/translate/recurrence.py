"""``deployml::linear_attention`` -> one ``deployml.canonical::LinearAttention`` node."""

from __future__ import annotations

from typing import Final

import onnx
import onnx_ir as ir
from onnxscript import evaluator

from ...passes.canonical import DOMAIN
from ...passes.canonical_recurrence import NAME

__all__ = ["translate_linear_attention"]

_schema = onnx.defs.OpSchema
_floats: Final = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]

#: Schema of what this translation emits; the op itself is described in ``passes/canonical_recurrence.py``.
_LINEAR: Final = _schema(
    NAME,
    DOMAIN,
    1,
    inputs=[
        *(_schema.FormalParameter(name, "T") for name in ("query", "key", "value", "decay", "beta")),
        _schema.FormalParameter("state", "T", param_option=_schema.FormalParameterOption.Optional),
    ],
    outputs=[_schema.FormalParameter("output", "T"), _schema.FormalParameter("present", "T")],
    type_constraints=[("T", _floats, "")],
    attributes=[_schema.Attribute("scale", onnx.defs.OpSchema.AttrType.FLOAT, "")],
)


def translate_linear_attention(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    decay: ir.Value,
    beta: ir.Value,
    state: ir.Value | None,
    scale: float,
) -> tuple[ir.Value, ir.Value]:
    """Emit the canonical linear attention for one captured call; shapes as the torch op says."""
    operands = [query, key, value, decay, beta, *([] if state is None else [state])]
    output, present = evaluator.default().eval(_LINEAR, operands, {"scale": float(scale)})
    shape, channels = list(query.shape), value.shape[-1]
    output.dtype = present.dtype = query.dtype
    output.shape, present.shape = ir.Shape([*shape[:3], channels]), ir.Shape([shape[0], *shape[2:], channels])
    return output, present
