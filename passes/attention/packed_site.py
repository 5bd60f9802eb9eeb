"""ATT023: onnxruntime's Attention with its projection inside becomes a projection and a canonical site."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, dims
from ..rule import Declined, Example
from ..symbols import same_dim
from .given import CANONICAL, GivenSite, Parts, added, filled, part, scale_of, split_heads, width
from .multi_head_site import keep_mask, read_elsewhere

__all__ = ["PackedSite"]

_OP = "com.microsoft::Attention"


@dataclass(frozen=True, slots=True)
class Facts:
    """A node, its inputs by name, and the widths of query, key and value."""

    node: ir.Node
    source: ir.Value
    weights: ir.Value
    bias: ir.Value | None
    padding: ir.Value | None
    attention_bias: ir.Value | None
    heads: int
    sizes: tuple[int, int, int]


class PackedSite(GivenSite):
    """The first fused attention of onnxruntime: projection, heads and attention in one node.

    ## What it finds
    com.microsoft Attention with merged weights (D, 3 * N * H) or ``qkv_hidden_sizes``, a bias, a mask as lengths,
    offsets, (B, T) or (B, S, T), an additive bias, and ``unidirectional``.

    ## Why
    Its CPU kernel projects head by head and builds the full score matrix. One MatMul and the best attention of the
    target are faster.

    ## Before -> After
    ``Attention(x, W, b, mask)`` -> ``canonical::Attention(q, k, v, , bias)`` of the parts of ``x W + b``.

    ## When it declines
    ``no-better-node``, ``cached`` (a past), ``rotary-inside`` (no CPU kernel does it), ``mask-form`` (starts and ends,
    or four axes), ``unknown-heads``.

    ## Numerics
    ROUNDING.

    ## References
    onnxruntime docs/ContribOperators.md, com.microsoft.Attention.
    """

    code = "ATT023"
    name = "packed-site"
    anchors = frozenset({_OP})

    def read(self, node: ir.Node) -> Facts:
        source, weights, bias, padding, past, attention_bias, shared = [*node.inputs, *[None] * (7 - len(node.inputs))]
        heads = int(attribute(node, "num_heads", 0))
        if past is not None or shared is not None or read_elsewhere(node, 1):
            raise Declined("cached", "keys and values come from a cache, or are kept for one", at=node)
        if attribute(node, "do_rotary", 0):
            raise Declined("rotary-inside", "query and key are rotated inside, which no CPU kernel does", at=node)
        if source is None or weights is None or len(dims(source) or ()) != 3 or not heads:
            raise Declined("unknown-heads", "the input is not of three axes, or the head count is missing", at=node)
        total = width(weights, node)
        given = tuple(int(n) for n in attribute(node, "qkv_hidden_sizes", ()) or (total // 3,) * 3)
        if len(given) != 3 or sum(given) != total or given[0] != given[1] or any(n % heads for n in given):
            raise Declined("unknown-heads", f"{heads} heads of widths {given} are not understood", at=node)
        if padding is not None and len(dims(padding) or ()) == 1 and not _for_each_row(padding, source):
            raise Declined("mask-form", "lengths that are not one a row are not understood", at=node)
        return Facts(node, source, weights, bias, padding, attention_bias, heads, given)

    def parts(self, facts: Facts, g: Builder) -> Parts:
        node, heads, source = facts.node, facts.heads, facts.source
        assert source.shape is not None
        shape = [*list(source.shape)[:2], sum(facts.sizes)]
        wide = g.op("MatMul", source, facts.weights, dtype=source.dtype, shape=shape)
        if facts.bias is not None:
            wide = g.op("Add", wide, facts.bias, dtype=source.dtype, shape=shape)
        bounds = np.cumsum((0, *facts.sizes)).tolist()
        pieces = (part(g, wide, a, b) for a, b in itertools.pairwise(bounds))
        query, key, value = (split_heads(g, piece, heads) for piece in pieces)
        bias = facts.attention_bias
        if facts.padding is not None:
            keep = keep_mask(g, facts.padding, query, key, node)
            bias = added(g, bias, filled(g, keep, float(attribute(node, "mask_filter_value", -10000.0)), query))
        return Parts(
            query=query,
            key=key,
            value=value,
            bias=bias,
            scale=scale_of(node, facts.sizes[0] // heads),
            causal="upper_left" if attribute(node, "unidirectional", 0) else "none",
        )

    def extra(self, facts: Facts, parts: Parts, g: Builder) -> Sequence[tuple[ir.Value, ir.Value]]:
        return ()


def _for_each_row(padding: ir.Value, source: ir.Value) -> bool:
    assert padding.shape is not None and source.shape is not None
    return same_dim(padding.shape[0], source.shape[0])


def _text(inputs: str, attributes: str, arguments: str) -> str:
    weights, bias = (",".join(str(round(0.1 * (n % 7) - 0.3, 1)) for n in range(count)) for count in (384, 48))
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g ({inputs}) => (float[B,S,16] y) <float[8,48] w = {{{weights}}}, float[48] b = {{{bias}}}> {{
  y = com.microsoft.Attention <{attributes}> ({arguments})
}}"""


PackedSite.examples = (
    Example(text=_text("float[B,S,8] x, int32[B,S] m", "num_heads = 2", "x, w, b, m"), fires=1, emits={CANONICAL: 1}),
    Example(
        text=_text("float[B,S,8] x, int32[B] n", "num_heads = 2, unidirectional = 1", "x, w, b, n"),
        fires=1,
        emits={CANONICAL: 1},
    ),
    Example(text=_text("float[B,S,8] x", "num_heads = 2, do_rotary = 1", "x, w, b"), because="rotary-inside"),
    Example(text=_text("float[B,S,8] x, float[2,B,2,P,8] p", "num_heads = 2", "x, w, b, , p"), because="cached"),
)
