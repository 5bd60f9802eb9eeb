"""Attention over five axes: windows beside the batch, or query heads in groups, each an axis of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import Builder, dims
from ..rule import Declined

__all__ = ["Five"]


@dataclass(frozen=True, slots=True)
class Five:
    """Which two leading axes of (., ., ., S, H) become one.

    Attributes:
        at: The first of the two: 0 joins windows to the batch, 1 joins the groups of heads.
        sizes: The two axes of the query, numbers where they are known.
        query: The query, whose leading axes are those of the scores and of the result.
    """

    at: int
    sizes: tuple[Any, Any]
    query: ir.Value

    @staticmethod
    def of(query: ir.Value, key: ir.Value | None, value: ir.Value) -> Five:
        """Read the two forms off the operands (the key as the product has it, transposed).

        Raises:
            Declined: "score-layout" for any other.
        """
        shapes = [dims(v) for v in (query, key, value)]
        if any(s is None or len(s) != 5 for s in shapes):
            raise Declined("score-layout", f"a product of five axes has operands of {shapes}", at=query)
        heads, keys, values = ([*s[:3]] for s in shapes if s is not None)
        assert query.shape is not None
        grouped = keys[2] == values[2] == 1 != heads[2] and heads[:2] == keys[:2] == values[:2]
        if grouped and isinstance(heads[1], int) and isinstance(heads[2], int):
            return Five(1, (heads[1], heads[2]), query)
        if heads == keys == values and None not in heads:
            return Five(0, (query.shape[0], query.shape[1]), query)
        raise Declined("score-layout", f"leading axes {heads}, {keys} and {values} of a product do not pair", at=query)

    def lift(self, g: Builder, value: ir.Value) -> ir.Value:
        """An operand as (B, N, S, H)."""
        shape = value.shape
        if shape is None or len(shape) != 5:
            raise Declined("score-layout", f"an operand of the attention has shape {dims(value)}", at=value)
        if self.at == 1 and shape[2] == 1:
            return self._squeeze(g, value, 2)
        return self._joined(g, value)

    def mask(self, g: Builder, value: ir.Value) -> ir.Value:
        """A mask or bias beside (., ., ., S, T) scores, as one beside (B, N, S, T)."""
        shape = value.shape
        if shape is None:
            raise Declined("score-layout", f"the rank of the mask '{value.name}' is not known", at=value)
        if len(shape) <= 2 + (self.at == 0):
            return value
        if len(shape) < 5:
            axes = g.const(np.arange(5 - len(shape), dtype=np.int64))
            value = g.op("Unsqueeze", value, axes, dtype=value.dtype, shape=[1] * (5 - len(shape)) + list(shape))
        shape = value.shape
        assert shape is not None
        if shape[self.at] == 1 and shape[self.at + 1] == 1:
            return self._squeeze(g, value, self.at)
        pair = g.op("Shape", self.query, start=self.at, end=self.at + 2, dtype=ir.DataType.INT64, shape=[2])
        ones = [g.const(np.ones(n, np.int64)) if n else None for n in (self.at, 3 - self.at)]
        target = g.op(
            "Concat", *[v for v in (ones[0], pair, ones[1]) if v is not None], axis=0, dtype=ir.DataType.INT64
        )
        wide = [*shape[: self.at], *self.sizes, *shape[self.at + 2 :]]
        return self._joined(g, g.op("Expand", value, target, dtype=value.dtype, shape=wide))

    def back(self, g: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
        """A (B, N, S, X) result in the shape of what it replaces."""
        return g.op("Reshape", value, self._target(g, value, like), dtype=like.dtype, shape=like.shape)

    def _target(self, g: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
        shape = list(like.shape or ())
        free = [i for i, d in enumerate(shape) if not isinstance(d, int) and i > 0]
        if len(free) <= 1 and self.at == 1:  # the batch is copied
            return g.const(np.array([0, *(d if isinstance(d, int) else -1 for d in shape[1:])], np.int64))
        if len([d for d in shape if not isinstance(d, int)]) <= 1:
            return g.const(np.array([d if isinstance(d, int) else -1 for d in shape], np.int64))
        # The shape of what is replaced would be that of the result itself.
        lead = g.op("Shape", self.query, start=0, end=2 + self.at, dtype=ir.DataType.INT64, shape=[2 + self.at])
        tail = g.op("Shape", value, start=1 + self.at, dtype=ir.DataType.INT64, shape=[3 - self.at])
        return g.op("Concat", lead, tail, axis=0, dtype=ir.DataType.INT64, shape=[5])

    def _joined(self, g: Builder, value: ir.Value) -> ir.Value:
        shape = list(value.shape or ())
        one = _product(shape[self.at], shape[self.at + 1])
        after = [*shape[: self.at], one, *shape[self.at + 2 :]]
        rest = [d for i, d in enumerate(after) if i != self.at]
        if self.at == 0 and all(isinstance(d, int) for d in rest):
            return self._reshaped(g, value, [-1, *rest], after)
        if self.at == 1 and isinstance(one, int) and sum(not isinstance(d, int) for d in after[2:]) <= 1:
            return self._reshaped(g, value, [0, one, *(d if isinstance(d, int) else -1 for d in after[2:])], after)
        lead = g.op("Shape", value, start=0, end=self.at, dtype=ir.DataType.INT64) if self.at else None
        tail = g.op("Shape", value, start=self.at + 2, dtype=ir.DataType.INT64, shape=[3 - self.at])
        pieces = [v for v in (lead, g.const(np.array([-1], np.int64)), tail) if v is not None]
        target = g.op("Concat", *pieces, axis=0, dtype=ir.DataType.INT64, shape=[4])
        return g.op("Reshape", value, target, dtype=value.dtype, shape=after)

    def _reshaped(self, g: Builder, value: ir.Value, target: list[Any], shape: list[Any]) -> ir.Value:
        return g.op("Reshape", value, g.const(np.array(target, np.int64)), dtype=value.dtype, shape=shape)

    def _squeeze(self, g: Builder, value: ir.Value, axis: int) -> ir.Value:
        shape = [d for i, d in enumerate(value.shape or ()) if i != axis]
        return g.op("Squeeze", value, g.const(np.array([axis], np.int64)), dtype=value.dtype, shape=shape)


def _product(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        return left * right
    try:
        return (left * right).simplify()
    except (AttributeError, TypeError, ValueError):
        return None
