"""ATT021: a MultiHeadAttention that is already in the graph becomes a canonical site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..capability import MHA
from ..graph import Builder, attribute, dims
from ..rule import Declined, Example
from ..symbols import same_dim
from .given import (
    CANONICAL,
    GivenSite,
    Parts,
    added,
    below_lengths,
    filled,
    kept,
    part,
    past_and,
    scale_of,
    split_heads,
    width,
)

__all__ = ["MultiHeadSite", "keep_mask", "read_elsewhere"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A node, its inputs by name, and the alignment of its causality."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    bias: ir.Value | None
    padding: ir.Value | None
    attention_bias: ir.Value | None
    past_key: ir.Value | None
    past_value: ir.Value | None
    heads: int
    causal: str


class MultiHeadSite(GivenSite):
    """onnxruntime's MultiHeadAttention, as its optimizer, Olive or hand-made graphs hold it.

    ## What it finds
    com.microsoft MultiHeadAttention over (B, S, N * H) queries, with keys and values likewise or as (B, N, T, H), a
    projection bias, a key padding mask of any form (lengths, (3 * B + 2) offsets, (B, T), (B, S, T)), an additive
    bias, a past that is concatenated, and ``unidirectional``.

    ## Why
    Its kernel builds the full score matrix as soon as there is a mask, a bias, causality or a past. As a canonical
    site it is lowered to the best operator of the target, like any other.

    ## Before -> After
    ``MultiHeadAttention(q, k, v, b, mask, bias)`` -> ``canonical::Attention(q, k, v, , bias)``. The mask becomes a
    bias of 0 and mask_filter_value, which is what the kernel adds.

    ## When it declines
    ``already-best`` where lowering gives the same operator again, ``no-better-node`` where no other takes it,
    ``packed-layout`` (packed query, key and value run on CUDA alone and cannot be proven), ``cached`` (a past in a
    shared buffer), ``score-output``, ``mask-form``, ``causal-alignment`` (unidirectional with unequal lengths and no
    past, which the kernel aligns to neither corner), ``unknown-heads``.

    ## Numerics
    ROUNDING.

    ## References
    onnxruntime docs/ContribOperators.md, com.microsoft.MultiHeadAttention.
    """

    code = "ATT021"
    name = "multi-head-site"
    anchors = frozenset({MHA})

    def read(self, node: ir.Node) -> Facts:
        query, key, value, bias, padding, attention_bias, *caches = [*node.inputs, *[None] * (10 - len(node.inputs))]
        heads = int(attribute(node, "num_heads", 0))
        if query is None or key is None or value is None or len(dims(query) or ()) != 3:
            raise Declined("packed-layout", "query, key and value are packed, or of unknown rank", at=node)
        if caches[2] is not None or caches[3] is not None:
            raise Declined("cached", "keys and values come from a shared buffer", at=node)
        if read_elsewhere(node, 3):
            raise Declined("score-output", "the scores are read as well", at=node)
        ranks = {len(dims(v) or ()) for v in (key, value)}
        sizes = [width(query, node), *(width(v, node) * (heads if ranks == {4} else 1) for v in (key, value))]
        if ranks not in ({3}, {4}) or not heads or any(s % heads for s in sizes) or sizes[0] != sizes[1]:
            raise Declined("unknown-heads", f"{heads} heads of widths {sizes} are not understood", at=node)
        if ranks == {4} and (bias is not None or caches[0] is not None):
            raise Declined("cached", "keys and values of a cache take neither a bias nor a past", at=node)
        past = caches[0] is not None
        causal = "none" if not attribute(node, "unidirectional", 0) else "lower_right" if past else "upper_left"
        if causal != "none" and not same_dim(dims_at(query, 1), dims_at(key, -2)):
            raise Declined("causal-alignment", "the kernel aligns causality to neither corner here", at=node)
        return Facts(node, query, key, value, bias, padding, attention_bias, caches[0], caches[1], heads, causal)

    def parts(self, facts: Facts, g: Builder) -> Parts:
        node, heads = facts.node, facts.heads
        query, key, value = (
            split_heads(g, v, heads) for v in _projected(g, (facts.query, facts.key, facts.value), facts.bias)
        )
        key, value = past_and(g, facts.past_key, key), past_and(g, facts.past_value, value)
        bias = facts.attention_bias
        if facts.padding is not None:
            keep = keep_mask(g, facts.padding, query, key, node)
            bias = added(g, bias, filled(g, keep, float(attribute(node, "mask_filter_value", -10000.0)), query))
        assert query.shape is not None
        size = query.shape[3]
        assert isinstance(size, int)
        return Parts(query=query, key=key, value=value, bias=bias, scale=scale_of(node, size), causal=facts.causal)

    def extra(self, facts: Facts, parts: Parts, g: Builder) -> Sequence[tuple[ir.Value, ir.Value]]:
        return kept(g, facts.node, parts)


def dims_at(value: ir.Value, axis: int) -> int | ir.SymbolicDim | None:
    """One dimension of a value of known rank."""
    assert value.shape is not None
    return value.shape[axis]


def read_elsewhere(node: ir.Node, *outputs: int) -> bool:
    """Whether any of these outputs of a node is read."""
    there = [node.outputs[i] for i in outputs if i < len(node.outputs)]
    return any(v.uses() or v.is_graph_output() for v in there)


def _projected(g: Builder, operands: Sequence[ir.Value], bias: ir.Value | None) -> list[ir.Value]:
    """The operands with their parts of the projection bias."""
    if bias is None:
        return list(operands)
    found, start = [], 0
    for value in operands:
        size = dims_at(value, -1)
        assert isinstance(size, int)
        found.append(g.op("Add", value, part(g, bias, start, start + size), dtype=value.dtype, shape=value.shape))
        start += size
    return found


def keep_mask(g: Builder, padding: ir.Value, query: ir.Value, key: ir.Value, node: ir.Node) -> ir.Value:
    """The boolean (B, 1, 1|S, T) form of a key padding mask or index.

    Raises:
        Declined: "mask-form" for other forms.
    """
    shape, batch = dims(padding), dims_at(query, 0)
    if shape is None or len(shape) not in (1, 2, 3):
        raise Declined("mask-form", f"a padding mask of {shape} is not understood", at=node)
    assert padding.shape is not None
    if len(shape) == 1:
        if same_dim(padding.shape[0], batch):
            return below_lengths(g, padding, key)
        if not _has_offsets(padding.shape[0], batch):
            raise Declined("mask-form", f"{shape[0]} numbers are neither lengths nor offsets of each row", at=node)
        return below_lengths(g, _lengths_of_offsets(g, padding, query), key)
    flags = g.op("Greater", padding, g.scalar(0, like=padding), dtype=ir.DataType.BOOL, shape=padding.shape)
    axes = np.array([1, 2] if len(shape) == 2 else [1], np.int64)
    wide = [padding.shape[0], *[1] * len(axes), *list(padding.shape)[1:]]
    return g.op("Unsqueeze", flags, g.const(axes), dtype=ir.DataType.BOOL, shape=wide)


def _has_offsets(size: int | ir.SymbolicDim | None, batch: int | ir.SymbolicDim | None) -> bool:
    if isinstance(batch, int):
        return size == 3 * batch + 2
    try:
        return batch is not None and batch.value is not None and same_dim(size, 3 * batch + 2)
    except ValueError:  # a name that is no expression
        return False


def _lengths_of_offsets(g: Builder, offsets: ir.Value, query: ir.Value) -> ir.Value:
    """The key lengths that (3 * B + 2) numbers begin with."""
    batch = g.op("Shape", query, start=0, end=1, dtype=ir.DataType.INT64, shape=[1])
    zero = g.const(np.array([0], np.int64))
    return g.op("Slice", offsets, zero, batch, zero, dtype=offsets.dtype, shape=[dims_at(query, 0)])


def _text(inputs: str, call: str, outputs: str = "y") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g ({inputs}) => (float[B,S,64] y) {{
  {outputs} = com.microsoft.MultiHeadAttention {call}
}}"""


_QKV = "float[B,S,64] q, float[B,T,64] k, float[B,T,64] v"
MultiHeadSite.examples = (
    Example(text=_text(f"{_QKV}, int32[B,T] m", "<num_heads = 4> (q, k, v, , m)"), fires=1, emits={CANONICAL: 1}),
    Example(
        text=_text(f"{_QKV}, float[192] b, float[1,4,S,T] a", "<num_heads = 4, scale = 0.3> (q, k, v, b, , a)"),
        fires=1,
        emits={CANONICAL: 1},
    ),
    Example(text=_text("float[B,S,4,3,16] q", "<num_heads = 4> (q)"), because="packed-layout"),
    Example(
        text=_text(f"{_QKV}, float[B,4,M,16] p, int32[1] n", "<num_heads = 4> (q, k, v, , , , p, p, n)"),
        because="cached",
    ),
    Example(text=_text(_QKV, "<num_heads = 4, unidirectional = 1> (q, k, v)"), because="causal-alignment"),
)
