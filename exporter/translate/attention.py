"""``deployml::attention`` -> one ``deployml.canonical::Attention`` node."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import onnx
import onnx_ir as ir
from onnxscript import evaluator
from onnxscript import opset18 as op

from ...passes.canonical import DOMAIN, NAME
from ...runtime.errors import UnsupportedError

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
        query, factor = _shaped(op.Mul(query, op.CastLike(scale, query)), query, query.shape), 1.0
    elif scale is None and not isinstance(size, int):
        query, factor = _shaped(_scaled_by_head_size(query), query, query.shape), 1.0
    else:
        factor = float(scale) if scale is not None else 1.0 / math.sqrt(size)
    mask, bias = _mask_or_bias(attn_mask, query)
    if rank == 4:
        query, key, value = _same_batch(query, key, value)
        return _node(query, key, value, mask, bias, factor, is_causal)
    if len({str(operand.shape[: rank - 3]) for operand in (query, key, value)}) > 1:
        raise UnsupportedError(
            f"An attention call broadcasts leading axes: query {query.shape}, key {key.shape}, value {value.shape}.",
            hint="Expand query, key and value to the same leading axes before scaled_dot_product_attention.",
        )
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
    result = evaluator.default().eval(_ATTENTION, operands, attributes)
    return _shaped(result, query, [*query.shape[:3], value.shape[3]])


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
    """Expand an operand whose batch or head count is a broadcast 1: rare, but legal in torch.

    One key head under many query heads stays as it is: the canonical op means the same by it.
    """
    operands = [query, key, value]
    batches = [operand.shape[0] for operand in operands]
    if batches.count(1) not in (0, 3):
        whole = next(operand for operand in operands if operand.shape[0] != 1)
        operands = [_widened(operand, whole, 0) if operand.shape[0] == 1 else operand for operand in operands]
    query, key, value = operands
    if key.shape[1] == 1 and value.shape[1] != 1:
        key = _widened(key, value, 1)
    elif value.shape[1] == 1 and key.shape[1] != 1:
        value = _widened(value, key, 1)
    if query.shape[1] == 1 and key.shape[1] != 1:
        query = _widened(query, key, 1)
    return query, key, value


def _widened(operand: ir.Value, like: ir.Value, axis: int) -> ir.Value:
    """Expand one axis of a four-axis operand from 1 to its size in ``like``."""
    sizes = [op.Constant(value_ints=[1])] * 4
    sizes[axis] = op.Shape(like, start=axis, end=axis + 1)
    shape = list(operand.shape)
    shape[axis] = like.shape[axis]
    return _shaped(op.Expand(operand, op.Concat(*sizes, axis=0)), operand, shape)


def _shaped(result: ir.Value, like: ir.Value, shape: Sequence[Any]) -> ir.Value:
    result.dtype = like.dtype
    result.shape = ir.Shape(shape)
    return result


def _to_rank_four(operand: ir.Value, rank: int) -> ir.Value:
    """(..., N, S, H) -> (B, N, S, H); with three axes torch's first axis is the heads."""
    if rank < 4:
        axes = op.Constant(value_ints=list(range(4 - rank)))
        return _shaped(op.Unsqueeze(operand, axes), operand, [*[1] * (4 - rank), *operand.shape])
    tail = op.Shape(operand, start=rank - 3)
    leading = operand.shape[: rank - 3]
    batch = math.prod(leading) if all(isinstance(size, int) for size in leading) else None
    flat = op.Reshape(operand, op.Concat(op.Constant(value_ints=[-1]), tail, axis=0))
    return _shaped(flat, operand, [batch, *operand.shape[rank - 3 :]])


def _mask_to_rank_four(mask: ir.Value | None, query: ir.Value, rank: int) -> ir.Value | None:
    if mask is None or rank < 4 or len(mask.shape) < 4:
        return mask
    leading = op.Shape(query, start=0, end=rank - 3)
    ones = op.Constant(value_ints=[1, 1, 1])
    shape = [*query.shape[: rank - 3], *mask.shape[len(mask.shape) - 3 :]]
    whole = _shaped(op.Expand(mask, op.Concat(leading, ones, axis=0)), mask, shape)
    return _to_rank_four(whole, rank)


def _from_rank_four(result: ir.Value, query: ir.Value, value: ir.Value, rank: int) -> ir.Value:
    if rank < 4:
        return op.Squeeze(result, op.Constant(value_ints=list(range(4 - rank))))
    leading = op.Shape(query, start=0, end=rank - 1)
    return op.Reshape(result, op.Concat(leading, op.Shape(value, start=rank - 1), axis=0))
