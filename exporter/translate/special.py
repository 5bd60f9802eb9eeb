"""Functions that torch's ONNX translation lacks or gets wrong, written with the operators ONNX has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

__all__ = ["special_table"]

#: Two polynomials for the inverse error function, highest power first: near the middle, and in the tails.
_MIDDLE: Final = (
    2.81022636e-08,
    3.43273939e-07,
    -3.5233877e-06,
    -4.39150654e-06,
    0.00021858087,
    -0.00125372503,
    -0.00417768164,
    0.246640727,
    1.50140941,
)
_TAILS: Final = (
    -0.000200214257,
    0.000100950558,
    0.00134934322,
    -0.00367342844,
    0.00573950773,
    -0.0076224613,
    0.00943887047,
    1.00167406,
    2.83297682,
)


def special_table() -> dict[Any, Any]:
    """torch op -> translation."""
    aten = torch.ops.aten
    return {
        aten.erfinv.default: translate_erfinv,
        aten.squeeze.dim: translate_squeeze,
        aten.repeat_interleave.self_int: translate_repeat_interleave,
        torch.sym_sqrt: translate_sym_sqrt,
        aten._cdist_forward.default: translate_distances,
        aten.searchsorted.Tensor: translate_searchsorted,
        aten.bucketize.Tensor: translate_bucketize,
    }


def translate_searchsorted(
    sorted_sequence: ir.Value,
    self: ir.Value,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: ir.Value | None = None,
) -> Any:
    """Emit ``aten.searchsorted.Tensor``: how many of the last axis stand before each value.

    Args:
        sorted_sequence: (N,), or (..., N) with the leading axes of the values.
        self: The values, (..., M); of any shape beside (N,).
        out_int32: Whether int32 is returned instead of int64.
        right: Whether what equals a value stands before it.
        side: "right" or "left" says the same.
        sorter: Indices that sort an unsorted sequence, in its shape.
    """
    last = op.Constant(value_ints=[-1])
    if sorter is not None:
        sorted_sequence = op.GatherElements(sorted_sequence, sorter, axis=-1)
    if sorted_sequence.shape is None or len(sorted_sequence.shape) > 1:
        sorted_sequence = op.Unsqueeze(sorted_sequence, op.Constant(value_ints=[-2]))
    each = op.Unsqueeze(self, last)
    before = op.LessOrEqual if right or side == "right" else op.Less
    count = op.ReduceSum(op.Cast(before(sorted_sequence, each), to=ir.DataType.INT64), last, keepdims=0)
    return op.Cast(count, to=ir.DataType.INT32) if out_int32 else count


def translate_bucketize(self: ir.Value, boundaries: ir.Value, out_int32: bool = False, right: bool = False) -> Any:
    """Emit ``aten.bucketize.Tensor``: how many of the boundaries (N,) stand before each value."""
    return translate_searchsorted(boundaries, self, out_int32=out_int32, right=right)


def translate_distances(x1: ir.Value, x2: ir.Value, p: float, compute_mode: int | None = None) -> Any:
    """Emit ``aten._cdist_forward``: distances of all rows of (..., S, D) from all of (..., T, D), as (..., S, T).

    Rows are subtracted from each other, which holds where they are close; a product of them would not.
    """
    del compute_mode  # how torch computes it
    last = op.Constant(value_ints=[-1])
    apart = op.Sub(op.Unsqueeze(x1, op.Constant(value_ints=[-2])), op.Unsqueeze(x2, op.Constant(value_ints=[-3])))
    if p == 2.0:
        return op.Sqrt(op.ReduceSum(op.Mul(apart, apart), last, keepdims=0))
    apart = op.Abs(apart)
    if p == 1.0:
        return op.ReduceSum(apart, last, keepdims=0)
    if math.isinf(p):
        return op.ReduceMax(apart, last, keepdims=0)
    if p == 0.0:
        zero = op.CastLike(op.Constant(value_float=0.0), apart)
        return op.ReduceSum(op.CastLike(op.Greater(apart, zero), apart), last, keepdims=0)
    total = op.ReduceSum(op.Pow(apart, op.CastLike(op.Constant(value_float=p), apart)), last, keepdims=0)
    return op.Pow(total, op.CastLike(op.Constant(value_float=1.0 / p), total))


def translate_squeeze(self: ir.Value, dim: int) -> Any:
    """Emit ``aten.squeeze.dim``, which leaves an axis of another size than 1 alone, as ONNX's ``Squeeze`` does not."""
    if self.shape is None or len(self.shape) == 0 or self.shape[dim] != 1:
        return op.Identity(self)
    return op.Squeeze(self, op.Constant(value_ints=[dim]))


def translate_sym_sqrt(size: int | float | ir.Value) -> Any:
    """Emit ``math.sqrt`` of a size."""
    if isinstance(size, (int, float)):
        return op.Constant(value_float=math.sqrt(size))
    return op.Sqrt(op.Cast(size, to=ir.DataType.FLOAT))


def translate_repeat_interleave(
    self: ir.Value, repeats: int | ir.Value, dim: int | None = None, output_size: int | ir.Value | None = None
) -> Any:
    """Emit ``aten.repeat_interleave.self_int``: one more axis behind the repeated one, expanded and merged with it.

    torchlib's translation repeats the other axis of the two where the number of repeats is a size.
    """
    if dim is None or self.shape is None or len(self.shape) == 0:
        self, dim, rank = op.Reshape(self, op.Constant(value_ints=[-1])), 0, 1
    else:
        rank = len(self.shape)
    dim %= rank
    apart = op.Unsqueeze(self, op.Constant(value_ints=[dim + 1]))
    before, after = [1] * (dim + 1), [1] * (rank - dim - 1)
    if isinstance(repeats, int):
        wanted = op.Constant(value_ints=[*before, repeats, *after])
    else:
        times = op.Reshape(repeats, op.Constant(value_ints=[-1]))
        wanted = op.Concat(op.Constant(value_ints=before), times, axis=0)
        wanted = op.Concat(wanted, op.Constant(value_ints=after), axis=0) if after else wanted
    merged = [op.Shape(self, start=0, end=dim)] if dim else []
    merged.append(op.Constant(value_ints=[-1]))
    if after:
        merged.append(op.Shape(self, start=dim + 1))
    return op.Reshape(op.Expand(apart, wanted), op.Concat(*merged, axis=0) if len(merged) > 1 else merged[0])


def translate_erfinv(self: ir.Value) -> Any:
    """Emit ``aten.erfinv``, computed in float32 to about two units in the last place (Giles, 2010)."""
    x = op.Cast(self, to=ir.DataType.FLOAT)
    one = op.Constant(value_float=1.0)
    distance = op.Neg(op.Log(op.Mul(op.Sub(one, x), op.Add(one, x))))
    middle = _polynomial(_MIDDLE, op.Sub(distance, op.Constant(value_float=2.5)))
    tails = _polynomial(_TAILS, op.Sub(op.Sqrt(distance), op.Constant(value_float=3.0)))
    factor = op.Where(op.Less(distance, op.Constant(value_float=5.0)), middle, tails)
    at_end = op.Equal(op.Abs(x), one)
    infinite = op.Constant(value_float=float("inf"))
    return op.CastLike(op.Mul(op.Where(at_end, infinite, factor), x), self)


def _polynomial(coefficients: Sequence[float], x: ir.Value) -> Any:
    total = op.Constant(value_float=coefficients[0])
    for coefficient in coefficients[1:]:
        total = op.Add(op.Mul(total, x), op.Constant(value_float=coefficient))
    return total
