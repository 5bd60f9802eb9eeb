"""ATT012: where the axis of the heads has no fixed size, what stands there joins the batch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .. import canonical
from ..canonical import AttentionNode
from ..graph import Builder, dims
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from ..symbols import same_dim
from .example_texts import attention_text

__all__ = ["WindowsAsBatch"]

_NAME = f"{canonical.DOMAIN}::{canonical.NAME}"


class WindowsAsBatch(Rule):
    """Windows, chunks or anything else of unknown number where the heads of an attention would be.

    ## What it finds
    A canonical attention whose query, key and value have the same symbol as size of their second axis: (B, W, S, H)
    with W windows of a sequence whose length is not fixed.

    ## Why
    Operators take the number of heads as an attribute. Every (b, w) is an attention of its own, so W can be part of the
    batch as well.

    ## Before -> After
    ``canonical::Attention(q, k, v)`` over (B, W, S, H) -> the same over (B * W, 1, S, H), and a Reshape back.

    ## When it declines
    ``unknown-heads`` where key or value have another number there, a sink for each, or the weights are read.

    ## Numerics
    EXACT in what is computed; ROUNDING, because another batch may be summed in another order.

    ## References
    Beltagy et al., Longformer: The Long-Document Transformer, 2020 (attention in windows).
    """

    code = "ATT012"
    name = "windows-as-batch"
    safety = Safety.ROUNDING
    anchors = frozenset({_NAME})
    emits = (_NAME,)

    def examine(self, node: ir.Node, context: Context) -> AttentionNode:
        site = canonical.read(node)
        shapes = [v.shape for v in (site.query, site.key, site.value)]
        if any(shape is None or len(shape) != 4 for shape in shapes) or isinstance(shapes[0][1], int):  # type: ignore[index]
            raise Declined("no-match", "the number of heads is fixed")
        query, key, value = (shape[1] for shape in shapes if shape is not None)
        if not (same_dim(query, key) and same_dim(query, value)):
            raise Declined("unknown-heads", "query, key and value may have different numbers of heads", at=node)
        if site.sink is not None or site.weights is not None:
            raise Declined("unknown-heads", "heads of unknown number have sinks, or their weights are read", at=node)
        return site

    def build(self, site: AttentionNode, g: Builder) -> Replacement:
        inputs: list[ir.Value | None] = [_joined(g, v) for v in (site.query, site.key, site.value)]
        inputs += [None if v is None else _beside(g, v, site.query) for v in (site.mask, site.bias)]
        while inputs[-1] is None:
            inputs.pop()
        old = site.output
        size = None if old.shape is None else list(old.shape)[2:]
        attributes = {a.name: a.value for a in site.node.attributes.values()}
        made = g.op(_NAME, *inputs, dtype=old.dtype, shape=None if size is None else [None, 1, *size], **attributes)
        lead = g.op("Shape", site.query, start=0, end=3, dtype=ir.DataType.INT64, shape=[3])
        target = g.op("Concat", lead, g.const(np.array([-1], np.int64)), axis=0, dtype=ir.DataType.INT64, shape=[4])
        return Replacement(old=[old], new=[g.op("Reshape", made, target, dtype=old.dtype, shape=old.shape)])


def _joined(g: Builder, value: ir.Value) -> ir.Value:
    """(B, W, X, Y) to (B * W, 1, X, Y)."""
    tail = g.op("Shape", value, start=2, end=4, dtype=ir.DataType.INT64, shape=[2])
    target = g.op("Concat", g.const(np.array([-1, 1], np.int64)), tail, axis=0, dtype=ir.DataType.INT64, shape=[4])
    assert value.shape is not None
    return g.op("Reshape", value, target, dtype=value.dtype, shape=[None, 1, *list(value.shape)[2:]])


def _beside(g: Builder, value: ir.Value, query: ir.Value) -> ir.Value:
    """A mask or bias beside (B, W, S, T) scores, as one beside (B * W, 1, S, T)."""
    shape = dims(value) or ()
    if all(d == 1 for d in shape[:-2]):
        return value
    pair = g.op("Shape", query, start=0, end=2, dtype=ir.DataType.INT64, shape=[2])
    target = g.op("Concat", pair, g.const(np.ones(2, np.int64)), axis=0, dtype=ir.DataType.INT64, shape=[4])
    assert query.shape is not None and value.shape is not None
    wide = [*list(query.shape)[:2], *list(value.shape)[-2:]]
    return _joined(g, g.op("Expand", value, target, dtype=value.dtype, shape=wide))


WindowsAsBatch.examples = (
    Example(text=attention_text(heads="W").text, fires=1, emits={_NAME: 1, "Reshape": 4}),
    Example(text=attention_text(heads="W", mask="B,1,1,T").text, fires=1, emits={_NAME: 1, "Expand": 1}),
    Example(text=attention_text(heads="W", bias="1,1,S,T").text, fires=1, emits={_NAME: 1}),
    Example(text=attention_text(heads="W", bias="B,W,1,S", causal="upper_left").text, fires=1),
    Example(text=attention_text(heads="W", weights=True).text, because="unknown-heads"),
    Example(text=attention_text(heads="W", kv_heads=1).text, because="unknown-heads"),
)
