"""Symbolic dimensions: equality that is proven, and values for them in the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from .graph import Builder

__all__ = ["broadcast", "dim_text", "length", "same_dim"]


def dim_text(dim: Any) -> str:
    """A dimension for a message: the number, the symbol, or "?"."""
    if isinstance(dim, int):
        return str(dim)
    return "?" if dim is None or dim.value is None else str(dim.value)


def same_dim(left: Any, right: Any) -> bool:
    """Whether two dimensions are provably equal: the same number or the same symbolic expression."""
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    if left is None or right is None or left.value is None or right.value is None:
        return False
    return left == right or _simplified(left) == _simplified(right)


def free_names(dim: ir.SymbolicDim) -> tuple[str, ...]:
    """The names an expression depends on, sorted; a name that is no expression ("seq len") stands for itself."""
    if dim.value is None:
        return ()
    try:
        return tuple(sorted(str(s) for s in dim.free_symbols()))
    except ValueError:
        return (str(dim.value),)


def size_of(dim: ir.SymbolicDim, bindings: Mapping[str, int]) -> int:
    """The size of a symbolic dimension when its names have these sizes."""
    if str(dim.value) in bindings:
        return bindings[str(dim.value)]
    return int(dim.evaluate(dict(bindings)))


def quotient(dim: Any, divisor: int) -> Any:
    """A dimension divided by a number that divides it; None when it has no name to say it with."""
    if isinstance(dim, int):
        return dim // divisor
    if divisor == 1:
        return dim
    try:
        return (dim // divisor).simplify() if dim is not None and dim.value is not None else None
    except ValueError:
        return None


def _simplified(dim: ir.SymbolicDim) -> Any:
    """Files name dimensions as they like ("seq len", "/layer/Add_d0"): such a name equals itself alone."""
    try:
        return dim.simplify()
    except ValueError:
        return dim.value


def broadcast(*values: ir.Value) -> list[Any] | None:
    """The shape that values broadcast to; a dimension that cannot be told is None. None for an unknown rank."""
    if any(v.shape is None for v in values):
        return None
    shapes = [list(v.shape) for v in values if v.shape is not None]
    rank = max(len(s) for s in shapes)
    padded = [[1] * (rank - len(s)) + s for s in shapes]
    return [_joined(column) for column in zip(*padded, strict=True)]


def _joined(column: tuple[Any, ...]) -> Any:
    wide = [d for d in column if d != 1]
    if not wide:
        return 1
    return wide[0] if all(same_dim(wide[0], d) for d in wide[1:]) else None


def length(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The size of one axis as a one-element int64 tensor.

    Read from the graph input that carries the same symbol, where there is one, so that every layer asks for it
    in the same words and common-subexpression elimination leaves one node.
    """
    dim = value.shape[axis] if value.shape is not None else None
    if isinstance(dim, int):
        return g.const(np.array([dim], np.int64))
    if dim is not None and dim.value is not None:
        for graph_input in g.graph.inputs:
            for position, other in enumerate(graph_input.shape or ()):
                if not isinstance(other, int) and other.value == dim.value:
                    return _shape(g, graph_input, position)
    return _shape(g, value, axis)


def _shape(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    return g.op("Shape", value, start=axis, end=axis + 1, dtype=ir.DataType.INT64, shape=[1])
