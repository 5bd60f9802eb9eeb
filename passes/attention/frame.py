"""Bringing what a walk found to the layout of the canonical op, (B, N, S, H), and its result back."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .. import canonical
from ..graph import Builder, dims, producer, scalar
from ..rule import Declined
from ..symbols import broadcast, quotient, ratio, same_dim
from .five import Five
from .scores import Product, Term, View, swaps_last

__all__ = ["Frame", "lifted_heads"]


def lifted_heads(query: ir.Value, key: ir.Value, value: ir.Value | None) -> int | None:
    """Head count of a (B * N, S, H) product, when its operands show it; None for four-dimensional ones."""
    shape = dims(query)
    if shape is None or len(shape) != 3:
        return None
    for operand in (query, value, key):
        heads = _merged_heads(operand)
        if heads is not None:
            return heads
    return 1


def _merged_heads(value: ir.Value | None) -> int | None:
    """Heads that a reshape merged into the batch: from (B, N, S, H) or (S, B, N, H), or split off a width of N * H."""
    size = (dims(value) or (None,))[-1]
    node = producer(value, *_HEAD_PATH)
    for _ in range(6):
        if node is None or node.inputs[0] is None:
            return None
        source, result = dims(node.inputs[0]), dims(node.outputs[0])
        if node.op_type == "Reshape" and source is not None and result is not None:
            if _is_time_first(source, result) and isinstance(source[2], int):
                return source[2]
            if len(source) == 4 and _keeps_batch(source, result):
                return None
            merged = _merged_behind_batch(node.inputs[0], node.outputs[0])
            if merged is not None:
                return merged
            width = source[-1]
            if len(source) == 3 and result[-1] == size and isinstance(width, int) and isinstance(size, int):
                return width // size if width % size == 0 else None
        node = producer(node.inputs[0], *_HEAD_PATH)
    return None


def _merged_behind_batch(source: ir.Value, result: ir.Value) -> int | None:
    """N of a reshape from (B, N, ...) to (B * N, S, H), where S may have been several axes, rows and columns say."""
    before, after = source.shape, result.shape
    if before is None or after is None or len(before) < 4 or len(after) != 3 or not isinstance(before[1], int):
        return None
    rows, size = before[2:-1], before[-1]
    if isinstance(size, int) and isinstance(after[2], int) and size != after[2]:
        times = ratio([after[0]], [before[0]])  # (B, N * H, ...) to (B * N, H, S): the rest of the channels stays
        return times if isinstance(times, int) and before[1] % times == 0 else None
    if len(rows) == 1 and (same_dim(rows[0], after[1]) or None in (dims(source) or ())[2:3]):
        return before[1]
    return before[1] if same_dim(size, after[2]) and ratio(rows, [after[1]]) == 1 else None


def _is_time_first(source: tuple[int | str | None, ...], result: tuple[int | str | None, ...]) -> bool:
    """Whether a reshape merges the two axes in the middle, (S, B, N, H) to (S, B * N, H)."""
    if len(source) != 4 or len(result) != 3 or source[2:] == result[1:]:
        return False
    return (source[0], source[3]) == (result[0], result[2])


def _keeps_batch(source: tuple[int | str | None, ...], result: tuple[int | str | None, ...]) -> bool:
    """Whether a reshape leaves the batch alone and merges other axes: rows and columns of an image, (B, C, H, W)."""
    return source[0] is not None and source[:2] == result[:2] and len(result) == 3


_HEAD_PATH = ("Reshape", "Transpose", "Mul", "Div", "Cast", "Identity")


def _same_view(views: list[View]) -> bool:
    """Whether views one after the other end in the one that they began with."""
    outer, inner = dims(views[0].outer), dims(views[-1].inner)
    return outer is not None and outer == inner and None not in outer


class Frame:
    """Brings operands, masks and results to (B, N, S, H) and back.

    Args:
        product: The score product and what stands between it and the softmax.
        value: The value operand.
        heads: Head count that a three-dimensional product merged into its batch; None for four-dimensional ones.
        g: Receives the nodes.

    Raises:
        Declined: "score-layout" when the score product has fewer than two or more than five axes.
    """

    def __init__(self, product: Product, value: ir.Value, heads: int | None, g: Builder) -> None:
        self.product = product
        self.value = value
        self.heads = heads or 1
        self.g = g
        self.scale = product.scale
        query = product.node.inputs[0]
        assert query is not None
        self.like = query
        self.rank = len(dims(query) or ())
        if self.rank not in (2, 3, 4, 5):
            raise Declined("score-layout", f"the score product has rank {self.rank or 'unknown'}", at=query)
        self.five = Five.of(query, product.node.inputs[1], value) if self.rank == 5 else None

    def operands(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Query, key and value; constant factors go to ``scale``, learned ones onto the query."""
        g = self.g
        left, right = self.product.node.inputs
        assert left is not None and right is not None
        query = self._descale(left)
        transposed = producer(right, "Transpose")
        if transposed is not None and swaps_last(transposed):
            key = transposed.inputs[0]
            assert key is not None
            key = self._descale(key)
        else:
            right = self._descale(right)
            shape = list(right.shape) if right.shape is not None else [None] * self.rank
            perm = [*range(self.rank - 2), self.rank - 1, self.rank - 2]
            key = g.op("Transpose", right, perm=perm, shape=[*shape[:-2], shape[-1], shape[-2]])
        query, key = self._unwidened(query, key)
        self.like = query
        for factor in self.product.factors:
            query = g.op(factor.op, query, factor.value, shape=query.shape)
        lifted = [self.lift(v) for v in (query, key, self._as_wide_as(query))]
        return (
            self._one_batch(lifted[0], lifted),
            self._one_batch(lifted[1], lifted),
            self._one_batch(lifted[2], lifted),
        )

    def _unwidened(self, query: ir.Value, key: ir.Value) -> tuple[ir.Value, ir.Value]:
        """float16 query and key before a cast for their product alone: operators add up in float32 anyway.

        Where a wide bias, factor or sink joins the scores they stay wide, and the value is widened; bfloat16 too, which
        would round the scale to eight bits.
        """
        product, half = self.product, self.value.dtype == ir.DataType.FLOAT16
        joined = product.factors or isinstance(product.sink, ir.Value) or any(t.kind == "bias" for t in product.terms)
        if not half or joined:
            return query, key
        before = [None if cast is None else cast.inputs[0] for cast in (producer(v, "Cast") for v in (query, key))]
        if any(source is None or source.dtype != self.value.dtype for source in before):
            return query, key
        return before[0], before[1]  # type: ignore[return-value]

    def _as_wide_as(self, query: ir.Value) -> ir.Value:
        """The value operand in the type of the scores, where query and key were widened for their product alone."""
        value = self.value
        if value.dtype == query.dtype or None in (value.dtype, query.dtype):
            return value
        return self.g.op("Cast", value, to=query.dtype, dtype=query.dtype, shape=value.shape)

    def _one_batch(self, value: ir.Value, all_three: list[ir.Value]) -> ir.Value:
        """An operand that is the same for the whole batch (a learned query, say), repeated for each row of it."""
        shape = value.shape
        wide = [v for v in all_three if v.shape is not None and v.shape[0] != 1]
        if shape is None or shape[0] != 1 or not wide or wide[0].shape is None:
            return value
        ones = self.g.const(np.ones(3, np.int64))
        batch = self.g.op("Shape", wide[0], start=0, end=1, dtype=ir.DataType.INT64, shape=[1])
        target = self.g.op("Concat", batch, ones, axis=0, dtype=ir.DataType.INT64, shape=[4])
        return self.g.op("Expand", value, target, dtype=value.dtype, shape=[wide[0].shape[0], *list(shape)[1:]])

    def _descale(self, value: ir.Value) -> ir.Value:
        """Take constant scalar factors off an operand and into the scale."""
        while True:
            node = producer(value, "Mul", "Div")
            if node is None:
                return value
            left, right = node.inputs
            number = scalar(right)
            if number is None and node.op_type == "Mul":
                left, right, number = right, left, scalar(left)
            if number is None or left is None or number == 0:
                return value
            self.scale = self.scale * number if node.op_type == "Mul" else self.scale / number
            value = left

    def lift(self, value: ir.Value) -> ir.Value:
        """(S, H), (B * N, S, H) or (B, W, N, S, H) to (B, N, S, H)."""
        shape = dims(value)
        if shape is None or len(shape) == 4:
            return value
        if self.five is not None:
            return self.five.lift(self.g, value)
        if len(shape) == 2 and self.rank == 2 and value.shape is not None:
            axes = self.g.const(np.array([0, 1], np.int64))
            return self.g.op("Unsqueeze", value, axes, dtype=value.dtype, shape=[1, 1, *value.shape])
        if len(shape) != 3:
            raise Declined("score-layout", f"an operand of the attention has rank {len(shape)}", at=value)
        heads = self.heads
        reshape = producer(value, "Reshape")
        if reshape is not None and reshape.inputs[0] is not None:
            source = dims(reshape.inputs[0])
            if source is not None and len(source) == 4 and source[1] == heads and source[2:] == shape[1:]:
                return reshape.inputs[0]
        tail = self.g.op("Shape", value, start=1, end=3, dtype=ir.DataType.INT64, shape=[2])
        lead = self.g.const(np.array([-1, heads], np.int64))
        target = self.g.op("Concat", lead, tail, axis=0, dtype=ir.DataType.INT64, shape=[4])
        assert value.shape is not None
        batch = quotient(value.shape[0], heads)
        return self.g.op("Reshape", value, target, shape=[batch, heads, value.shape[1], value.shape[2]])

    def masks(self) -> tuple[ir.Value | None, ir.Value | None]:
        """The keep mask and the bias that all terms together are; None where there is none."""
        keep: ir.Value | None = None
        bias: ir.Value | None = None
        for term in self.product.terms:
            if term.kind == "bias" or term.fill is not None:
                bias = self._plus(bias, self._through(self._as_bias(term), term))
                continue
            one = term.value
            if term.kind == "drop":
                one = self.g.op("Not", one, dtype=ir.DataType.BOOL, shape=one.shape)
            one = self._through(one, term)
            both = one if keep is None else None
            keep = both or self.g.op("And", keep, one, dtype=ir.DataType.BOOL, shape=broadcast(keep, one))
        return keep, bias

    def _plus(self, left: ir.Value | None, right: ir.Value) -> ir.Value:
        return right if left is None else self.g.op("Add", left, right, shape=broadcast(left, right))

    def _as_bias(self, term: Term) -> ir.Value:
        g = self.g
        query = self.like
        if term.kind == "bias":
            value = term.value
            if value.dtype is not None and query.dtype is not None and value.dtype != query.dtype:
                value = g.op("Cast", value, to=query.dtype, dtype=query.dtype, shape=value.shape)
            if term.factor != 1.0:
                value = g.op("Mul", value, g.scalar(term.factor, like=value), shape=value.shape)
            for factor in term.factors:
                value = g.op(factor.op, value, factor.value)
            return value
        lowest = float(ml_dtypes.finfo((query.dtype or ir.DataType.FLOAT).numpy()).min)
        zero, fill = g.scalar(0.0, like=query), g.scalar(max(term.fill or 0.0, lowest), like=query)
        arms = (zero, fill) if term.kind == "keep" else (fill, zero)
        return g.op("Where", term.value, *arms, dtype=query.dtype, shape=term.value.shape)

    def _through(self, value: ir.Value, term: Term) -> ir.Value:
        """Carry a term from its own view of the scores to (B, N, S, T)."""
        shape = dims(value)
        views = [v for v in term.views if dims(v.outer) != dims(v.inner)]
        if views and _same_view(views):
            views = []
        if any((dims(v.outer) or ())[-2:] != (dims(v.inner) or ())[-2:] for v in views):
            value = self._unsplit(value, views)
        elif views and shape is not None:
            if all(d == 1 for d in shape[:-2]):
                return self._squeezed(value, shape)
            if self.rank == 3 and len(dims(views[0].outer) or ()) == 4:
                return value
            value = self._viewed(value, views)
        if self.five is not None:
            return self.five.mask(self.g, value)
        return self._lifted_mask(value) if self.rank == 3 else value

    def _unsplit(self, value: ir.Value, views: list[View]) -> ir.Value:
        """A term beside scores whose query and key axes are split (into rows and columns, say), as one beside scores.

        Raises:
            Declined: "score-layout" unless the split axes have fixed sizes.
        """
        outer, inner, shape = dims(views[0].outer), dims(views[-1].inner), dims(value)
        if outer is not None and len(outer) == 2 and inner is not None and shape is not None:
            return self._rows_apart(value, views[-1].inner)
        known = outer is not None and inner is not None and shape is not None and len(views) == 1
        if not known or outer is None or inner is None or shape is None or outer[0] != inner[0]:
            raise Declined("score-layout", f"a term beside scores of {outer} does not fit {inner}", at=value)
        if not all(isinstance(d, int) for d in (*outer[1:], *inner[1:])):
            raise Declined("score-layout", f"the split axes of {outer} are not all fixed", at=value)
        g = self.g
        batch = value.shape[0] if value.shape is not None and len(shape) == len(outer) else 1
        wide = g.const(np.array([1, *outer[1:]], np.int64))
        full = g.op("Expand", value, wide, dtype=value.dtype, shape=[batch, *outer[1:]])
        target = g.const(np.array([-1, *inner[1:]], np.int64))
        return g.op("Reshape", full, target, dtype=value.dtype, shape=[batch, *inner[1:]])

    def _rows_apart(self, value: ir.Value, inner: ir.Value) -> ir.Value:
        """A term beside scores of (B * N * S, T), as one beside ``inner``, (B * N, S, T) or (B, N, S, T)."""
        shape = dims(value) or ()
        if len(shape) < 2 or shape[0] == 1:
            return value
        # The query has the rows of the scores, and is there without them.
        query = self.product.node.inputs[0]
        like = query if (dims(query) or ())[:-1] == (dims(inner) or ())[:-1] else inner
        rows = self.g.op("Shape", like, start=0, end=-1, dtype=ir.DataType.INT64)
        target = self.g.op("Concat", rows, self.g.const(np.array([-1], np.int64)), axis=0, dtype=ir.DataType.INT64)
        assert inner.shape is not None and value.shape is not None
        return self.g.op("Reshape", value, target, dtype=value.dtype, shape=[*inner.shape[:-1], value.shape[-1]])

    def _squeezed(self, value: ir.Value, shape: tuple[int | str | None, ...]) -> ir.Value:
        """A term that depends on query and key alone fits every view once its leading ones are gone."""
        if len(shape) <= 2:
            return value
        assert value.shape is not None
        axes = self.g.const(np.arange(len(shape) - 2, dtype=np.int64))
        return self.g.op("Squeeze", value, axes, dtype=value.dtype, shape=list(value.shape)[-2:])

    def _viewed(self, value: ir.Value, views: list[View]) -> ir.Value:
        """Expand the leading axes to those of the outer view, then reshape them to the inner one."""
        g = self.g
        outer, inner = views[0].outer, views[-1].inner
        rank_out, rank_in = len(dims(outer) or ()), len(dims(inner) or ())
        ones = g.const(np.array([1, 1], np.int64))
        lead_out = g.op("Shape", outer, start=0, end=rank_out - 2, dtype=ir.DataType.INT64)
        lead_in = g.op("Shape", inner, start=0, end=rank_in - 2, dtype=ir.DataType.INT64)
        wide = g.op("Expand", value, g.op("Concat", lead_out, ones, axis=0), dtype=value.dtype)
        tail = g.op("Shape", wide, start=-2, dtype=ir.DataType.INT64)
        target = g.op("Concat", lead_in, tail, axis=0, dtype=ir.DataType.INT64)
        shape = None if inner.shape is None or value.shape is None else [*inner.shape[:-2], *list(value.shape)[-2:]]
        return g.op("Reshape", wide, target, dtype=value.dtype, shape=shape)

    def _lifted_mask(self, value: ir.Value) -> ir.Value:
        """A mask beside (B * N, S, T) scores, as one beside (B, N, S, T)."""
        shape = dims(value)
        if shape is None:
            raise Declined("score-layout", f"the rank of the mask '{value.name}' is not known", at=value)
        if len(shape) < 3 or (len(shape) == 3 and shape[0] == 1) or len(shape) == 4:
            return value
        if self.heads == 1:
            axes = self.g.const(np.array([1], np.int64))
            assert value.shape is not None
            return self.g.op(
                "Unsqueeze", value, axes, dtype=value.dtype, shape=[value.shape[0], 1, *list(value.shape)[1:]]
            )
        return self.lift(value)

    def sink(self, query: ir.Value) -> ir.Value | None:
        """The sink logits as an (N,) tensor."""
        sink, heads, g = self.product.sink, canonical.heads(query), self.g
        if isinstance(sink, ir.Value) and len(dims(sink) or ()) == 1:
            return sink
        if sink is None:
            return None
        if heads is None:
            raise Declined("unknown-heads", "the head count of a site with a sink must be fixed", at=query)
        if not isinstance(sink, ir.Value):
            dtype = query.dtype or ir.DataType.FLOAT
            return g.const(np.full(heads, sink, dtype.numpy()))
        flat = g.op("Reshape", sink, g.const(np.array([-1], np.int64)), dtype=sink.dtype, shape=[None])
        return g.op("Expand", flat, g.const(np.array([heads], np.int64)), dtype=sink.dtype, shape=[heads])

    def output_shape(self, query: ir.Value, value: ir.Value) -> list[Any] | None:
        """(B, N, S, Hv), None when it is not known."""
        if query.shape is None or value.shape is None or len(query.shape) != 4 or len(value.shape) != 4:
            return None
        return [*list(query.shape)[:3], value.shape[3]]

    def back(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Give a (B, N, S, X) result the shape and the type of what it replaces."""
        shape = dims(like)
        if None not in (value.dtype, like.dtype) and value.dtype != like.dtype:
            value = self.g.op("Cast", value, to=like.dtype, dtype=like.dtype, shape=value.shape)
        if shape is None or len(shape) == 4:
            return value
        if self.five is not None:
            return self.five.back(self.g, value, like)
        if len(shape) == 2:
            axes = self.g.const(np.array([0, 1], np.int64))
            return self.g.op("Squeeze", value, axes, dtype=like.dtype, shape=like.shape)
        tail = self.g.op("Shape", value, start=2, end=4, dtype=ir.DataType.INT64, shape=[2])
        lead = self.g.const(np.array([-1], np.int64))
        target = self.g.op("Concat", lead, tail, axis=0, dtype=ir.DataType.INT64, shape=[3])
        return self.g.op("Reshape", value, target, dtype=like.dtype, shape=like.shape)
