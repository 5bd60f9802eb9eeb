"""Rotary tables as the fused operator wants them: two-dimensional, with positions that index their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import Builder
from ..rule import Declined
from ..symbols import length, same_dim
from .halves import Half

__all__ = ["Axes", "align", "positions", "two_dimensional"]


@dataclass(frozen=True, slots=True)
class Axes:
    """Where a rotated tensor of rank 4 has its sequence and its heads, and whether its tables vary by batch."""

    sequence: int
    heads: int
    batched: bool


def align(x: ir.Value, table: ir.Value, width: int) -> Axes:
    """Line a cosine or sine table up with the rank-4 tensor it is multiplied with.

    Raises:
        Declined: "table-shape" when the table varies by head, or by something that is no axis of x.
    """
    assert x.shape is not None and table.shape is not None
    full = list(x.shape)
    shape = [1] * (4 - len(table.shape)) + list(table.shape)
    if len(table.shape) > 4 or shape[3] != width:
        raise Declined("table-shape", f"the table {table.shape} does not fit {x.shape}", at=table)
    batched = shape[0] != 1
    if batched and not same_dim(shape[0], full[0]):
        raise Declined("table-shape", f"the batch of the table {table.shape} is not that of {x.shape}", at=table)
    varying = [axis for axis in (1, 2) if shape[axis] != 1]
    if len(varying) > 1:
        raise Declined("table-shape", f"the table {table.shape} varies by head", at=table)
    sequence = varying[0] if varying else _one_long(full)
    if not same_dim(shape[sequence], full[sequence]) or sequence == 0:
        raise Declined("table-shape", f"the length of the table {table.shape} is not that of {x.shape}", at=table)
    return Axes(sequence=sequence, heads=3 - sequence, batched=batched)


def _one_long(full: list[Any]) -> int:
    """The sequence axis when the table has a single position: the one that is one long, if only one is."""
    single = [axis for axis in (1, 2) if full[axis] == 1]
    return single[0] if len(single) == 1 else 0


def two_dimensional(g: Builder, half: Half, width: int) -> ir.Value:
    """Build half a table as (rows, width / 2)."""
    value = half.build(g)
    shape = g.const(np.array([-1, width // 2], np.int64))
    return g.op("Reshape", value, shape, dtype=value.dtype, shape=[None, width // 2])


def positions(g: Builder, x: ir.Value, axes: Axes) -> ir.Value:
    """Positions that index the rows of such a table: an offset of zero, or one row for each token of the batch."""
    if not axes.batched:
        return g.const(np.zeros(1, np.int64))
    assert x.shape is not None
    batch, rows = length(g, x, 0), length(g, x, axes.sequence)
    zero, one = g.const(np.asarray(0, np.int64)), g.const(np.asarray(1, np.int64))
    total = g.op("Squeeze", g.op("Mul", batch, rows, dtype=ir.DataType.INT64, shape=[1]))
    total.dtype, total.shape = ir.DataType.INT64, ir.Shape([])
    order = g.op("Range", zero, total, one, dtype=ir.DataType.INT64, shape=[None])
    grid = g.op("Concat", batch, rows, axis=0, dtype=ir.DataType.INT64, shape=[2])
    return g.op("Reshape", order, grid, dtype=ir.DataType.INT64, shape=[x.shape[0], x.shape[axes.sequence]])
