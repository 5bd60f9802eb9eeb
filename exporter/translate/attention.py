"""``deployml::attention`` -> one ``deployml.canonical::Attention`` node."""

from __future__ import annotations

import math
from typing import Any, Final

import onnx
import onnx_ir as ir
from onnxscript import evaluator
from onnxscript import opset18 as op

from ...passes.canonical import DOMAIN, NAME

__all__ = ["translate_attention"]

_schema = onnx.defs.OpSchema
_floats: Final = ["tensor(float)", "tensor(double)", "tensor(float16)", "tensor(bfloat16)"]

#: Schema of what this translation emits; the op itself is described in ``passes/canonical.py``.
_ATTENTION: Final = _schema(
    NAME,
    DOMAIN,
    1,
    inputs=[
        _schema.FormalParameter("query", "T"),
        _schema.FormalParameter("key", "T"),
        _schema.FormalParameter("value", "T"),
        _schema.FormalParameter("mask", "M", param_option=_schema.FormalParameterOption.Optional),
        _schema.FormalParameter("bias", "T", param_option=_schema.FormalParameterOption.Optional),
    ],
    outputs=[_schema.FormalParameter("output", "T")],
    type_constraints=[("T", _floats, ""), ("M", ["tensor(bool)"], "")],
    attributes=[
        _schema.Attribute("scale", onnx.defs.OpSchema.AttrType.FLOAT, ""),
        _schema.Attribute("causal", onnx.defs.OpSchema.AttrType.STRING, ""),
        _schema.Attribute("origin", onnx.defs.OpSchema.AttrType.STRING, ""),
    ],
)


def translate_attention(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    attn_mask: ir.Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
    stride_order: Any = (),
) -> ir.Value:
    """Emit the canonical attention for one captured call, operands brought to four axes.

    Shapes as in ``torch.nn.functional.scaled_dot_product_attention``: query (..., N, S, H), with any number of
    leading axes. ``dropout_p`` is 0 here: capture refuses anything else.
    """
    del dropout_p, enable_gqa, stride_order  # Fewer key heads than query heads say all that enable_gqa says.
    rank = len(query.shape)
    size = query.shape[-1]
    if isinstance(scale, ir.Value):
        query, factor = op.Mul(query, op.CastLike(scale, query)), 1.0
    elif scale is None and not isinstance(size, int):
        query, factor = _scaled_by_head_size(query), 1.0
    else:
        factor = float(scale) if scale is not None else 1.0 / math.sqrt(size)
    mask, bias = _mask_or_bias(attn_mask, query)
    if rank == 4:
        query, key, value = _same_batch(query, key, value)
        return _node(query, key, value, mask, bias, factor, is_causal)
    flat = [_to_rank_four(operand, rank) for operand in (query, key, value)]
    mask, bias = (_mask_to_rank_four(m, query, rank) for m in (mask, bias))
    result = _node(*flat, mask, bias, factor, is_causal)
    return _from_rank_four(result, query, value, rank)


def _node(
    query: ir.Value,
    key: ir.Value,
    value: ir.Value,
    mask: ir.Value | None,
    bias: ir.Value | None,
    scale: float,
    is_causal: bool,
) -> ir.Value:
    operands = [query, key, value, mask, bias]
    while operands[-1] is None:
        operands.pop()
    attributes = {"scale": scale, "causal": "upper_left" if is_causal else "none", "origin": "sdpa"}
    return evaluator.default().eval(_ATTENTION, operands, attributes)


def _scaled_by_head_size(query: ir.Value) -> ir.Value:
    size = op.CastLike(op.Shape(query, start=-1), query)
    return op.Div(query, op.Sqrt(size))


def _mask_or_bias(mask: ir.Value | None, query: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    if mask is None:
        return None, None
    if mask.dtype == ir.DataType.BOOL:
        return mask, None
    return None, mask if mask.dtype == query.dtype else op.CastLike(mask, query)


def _same_batch(query: ir.Value, key: ir.Value, value: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Expand an operand whose batch (or, for value, head count) is a broadcast 1: rare, but legal in torch."""
    operands = [query, key, value]
    batches = [operand.shape[0] for operand in operands]
    if batches.count(1) not in (0, 3):
        whole = operands[next(i for i, size in enumerate(batches) if size != 1)]
        batch = op.Shape(whole, start=0, end=1)
        operands = [_with_batch(o, batch) if o.shape[0] == 1 else o for o in operands]
    query, key, value = operands
    kv_heads = {key.shape[1], value.shape[1]}
    if len(kv_heads) == 2 and 1 in kv_heads:
        key, value = _with_heads(key, value)
    heads = key.shape[1]
    if query.shape[1] == 1 and heads != 1:
        query = op.Expand(query, op.Concat([1], op.Shape(key, start=1, end=2), [1], [1], axis=0))
    return query, key, value


def _with_batch(operand: ir.Value, batch: ir.Value) -> ir.Value:
    return _shaped(op.Expand(operand, op.Concat(batch, op.Constant(value_ints=[1, 1, 1]), axis=0)), operand)


def _with_heads(key: ir.Value, value: ir.Value) -> tuple[ir.Value, ir.Value]:
    few, many = (key, value) if key.shape[1] == 1 else (value, key)
    one = op.Constant(value_ints=[1])
    count = op.Shape(many, start=1, end=2)
    wide = op.Expand(few, op.Concat(one, count, op.Constant(value_ints=[1, 1]), axis=0))
    _shaped(wide, few)
    wide.shape = ir.Shape([few.shape[0], many.shape[1], few.shape[2], few.shape[3]])
    return (wide, many) if few is key else (many, wide)


def _shaped(result: ir.Value, like: ir.Value) -> ir.Value:
    result.dtype = like.dtype
    result.shape = ir.Shape(list(like.shape))
    return result


def _to_rank_four(operand: ir.Value, rank: int) -> ir.Value:
    """(..., N, S, H) -> (B, N, S, H); with three axes torch's first axis is the heads."""
    if rank < 4:
        return op.Unsqueeze(operand, op.Constant(value_ints=list(range(4 - rank))))
    tail = op.Shape(operand, start=rank - 3)
    return op.Reshape(operand, op.Concat(op.Constant(value_ints=[-1]), tail, axis=0))


def _mask_to_rank_four(mask: ir.Value | None, query: ir.Value, rank: int) -> ir.Value | None:
    if mask is None or rank < 4 or len(mask.shape) < 4:
        return mask
    leading = op.Shape(query, start=0, end=rank - 3)
    ones = op.Constant(value_ints=[1, 1, 1])
    whole = op.Expand(mask, op.Concat(leading, ones, axis=0))
    return _to_rank_four(whole, rank)


def _from_rank_four(result: ir.Value, query: ir.Value, value: ir.Value, rank: int) -> ir.Value:
    if rank < 4:
        return op.Squeeze(result, op.Constant(value_ints=list(range(4 - rank))))
    leading = op.Shape(query, start=0, end=rank - 1)
    return op.Reshape(result, op.Concat(leading, op.Shape(value, start=rank - 1), axis=0))
