"""Writing into a slice of a tensor, ``x[:, 1:] = y``: the pieces that stay and the new one, end to end.

torch's ONNX translation turns the axis to the front, lists its positions and scatters by them. No pass sees through
that, and a slice that is the whole axis is scattered like any other.
"""

from __future__ import annotations

from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

__all__ = ["overwrite_table"]

#: torch says "to the end" with the largest int64.
_END: Final = 2**63 - 1


def overwrite_table() -> dict[Any, Any]:
    """torch op -> translation, for writing into a part of one axis."""
    aten = torch.ops.aten
    return {aten.slice_scatter.default: translate_slice_scatter, aten.select_scatter.default: translate_select_scatter}


def translate_slice_scatter(
    self: ir.Value, src: ir.Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """Emit ``aten.slice_scatter``: ``self`` with ``src`` in the place of a slice of axis ``dim``."""
    start = 0 if start is None else start
    whole, length = self.shape[dim], src.shape[dim]
    if step != 1:
        return _scattered(self, src, dim, start, end, step)
    if isinstance(whole, int) and whole == length:
        return op.Identity(src)
    first = isinstance(start, int) and start == 0
    pieces = [src] if first else [_slice(self, 0, start, dim), src]
    if first and _same(end, whole):
        return op.Identity(src)
    if not _same(end, whole):
        pieces.append(_slice(self, _after(pieces, start, length, dim), _END, dim))
    return op.Concat(*pieces, axis=dim)


def translate_select_scatter(self: ir.Value, src: ir.Value, dim: int, index: Any) -> Any:
    """Emit ``aten.select_scatter``: ``self`` with ``src`` in the place of row ``index`` of axis ``dim``."""
    row = op.Unsqueeze(src, op.Constant(value_ints=[dim % len(self.shape)]))
    pieces = [row] if isinstance(index, int) and index == 0 else [_slice(self, 0, index, dim), row]
    if not (isinstance(index, int) and index == -1):
        pieces.append(_slice(self, _after(pieces, index, 1, dim), _END, dim))
    return pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=dim)


def _same(end: Any, whole: Any) -> bool:
    """Whether a slice surely reaches the end of its axis."""
    return end is None or (isinstance(end, int) and (end == _END or (isinstance(whole, int) and end >= whole)))


def _after(pieces: list[ir.Value], start: Any, length: Any, dim: int) -> Any:
    """Where the axis goes on behind the pieces written so far."""
    if isinstance(start, int) and start >= 0 and isinstance(length, int):
        return start + length
    sizes = [_length(piece, dim) for piece in pieces]
    return sizes[0] if len(sizes) == 1 else op.Add(*sizes)


def _length(value: ir.Value, dim: int) -> Any:
    return op.Gather(op.Shape(value), op.Constant(value_ints=[dim]))


def _slice(value: ir.Value, start: Any, end: Any, dim: int) -> Any:
    return op.Slice(value, _vector(start), _vector(end), op.Constant(value_ints=[dim]))


def _vector(number: Any) -> Any:
    if isinstance(number, int):
        return op.Constant(value_ints=[number])
    return op.Reshape(number, op.Constant(value_ints=[1]))


def _scattered(self: ir.Value, src: ir.Value, dim: int, start: Any, end: Any, step: int) -> Any:
    """Every so many rows of an axis: by their positions."""
    places = op.Range(op.Constant(value_int=0), _scalar_length(self, dim), op.Constant(value_int=1))
    bounds = [_vector(start), _vector(_END if end is None else end), op.Constant(value_ints=[0]), _vector(step)]
    ones = [1] * len(self.shape)
    ones[dim] = -1
    column = op.Reshape(op.Slice(places, *bounds), op.Constant(value_ints=ones))
    return op.ScatterElements(self, op.Expand(column, op.Shape(src)), src, axis=dim)


def _scalar_length(value: ir.Value, dim: int) -> Any:
    return op.Squeeze(_length(value, dim), op.Constant(value_ints=[0]))
