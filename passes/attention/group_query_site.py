"""ATT022: a GroupQueryAttention that is already in the graph becomes a canonical site."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..capability import GQA
from ..graph import Builder, attribute, dims
from ..rule import Declined, Example
from ..symbols import broadcast
from .given import CANONICAL, GivenSite, Parts, below_lengths, kept, part, places, scale_of, split_heads, width
from .multi_head_site import read_elsewhere

__all__ = ["GroupQuerySite"]


@dataclass(frozen=True, slots=True)
class Rotary:
    """Rotary tables (positions, size / 2) and, where given, the ids of the positions."""

    cos: ir.Value
    sin: ir.Value
    positions: ir.Value | None


@dataclass(frozen=True, slots=True)
class Facts:
    """A node and its inputs by name; key and value are None where the query holds all three."""

    node: ir.Node
    query: ir.Value
    key: ir.Value | None
    value: ir.Value | None
    lengths: ir.Value
    bias: ir.Value | None
    sink: ir.Value | None
    rotary: Rotary | None
    heads: int
    kv_heads: int
    size: int


class GroupQuerySite(GivenSite):
    """onnxruntime's GroupQueryAttention without a past: prompts, as model builders write them.

    ## What it finds
    com.microsoft GroupQueryAttention over (B, S, N * H) tensors, also packed into the query: ragged lengths
    (``seqlens_k``), ``causal``, ``local_window_size``, ``softcap``, ``smooth_softmax`` and ``head_sink``, an additive
    bias, and rotary embedding inside (``do_rotary``).

    ## Why
    The kernel loses its tiled form with softcap, sinks or without causality, and heads that are not shared are
    computed faster by another operator. As a canonical site it is lowered to the best one of the target.

    ## Before -> After
    ``GroupQueryAttention(q, k, v, , , seqlens_k, total, cos, sin)`` -> ``canonical::Attention(rotary(q), rotary(k), v,
    mask)``. Lengths and the window become a boolean mask; the lowering reads them from it again.

    ## When it declines
    ``already-best`` where lowering gives the same operator again, ``no-better-node`` where no other takes it,
    ``cached`` (a past or a window cache), ``quantized-cache``, ``score-output``, ``query-norm``, ``unknown-heads``.

    ## Numerics
    ROUNDING.

    ## References
    onnxruntime docs/ContribOperators.md, com.microsoft.GroupQueryAttention; Ainslie et al., GQA, 2023.
    """

    code = "ATT022"
    name = "group-query-site"
    anchors = frozenset({GQA})

    def read(self, node: ir.Node) -> Facts:
        inputs = [*node.inputs, *[None] * (16 - len(node.inputs))]
        query, key, value, past_key, past_value, lengths, _, cos, sin, positions, bias, sink = inputs[:12]
        self._refuse(node, inputs)
        if past_key is not None or past_value is not None or attribute(node, "sliding_window_cache", 0):
            raise Declined("cached", "keys and values come from a cache", at=node)
        heads, kv_heads = int(attribute(node, "num_heads", 0)), int(attribute(node, "kv_num_heads", 0))
        if query is None or lengths is None or len(dims(query) or ()) != 3 or not heads or not kv_heads:
            raise Declined("unknown-heads", "the query is not of three axes, or head counts are missing", at=node)
        count = heads if key is not None else heads + 2 * kv_heads
        size, rest = divmod(width(query, node), count)
        if rest or (key is not None and width(key, node) != kv_heads * size):
            raise Declined("unknown-heads", f"widths do not fit {heads} and {kv_heads} heads", at=node)
        rotary = None
        if attribute(node, "do_rotary", 0):
            if cos is None or sin is None:
                raise Declined("rotary-form", "a rotary embedding without its tables", at=node)
            rotary = Rotary(cos, sin, positions)
        return Facts(node, query, key, value, lengths, bias, sink, rotary, heads, kv_heads, size)

    @staticmethod
    def _refuse(node: ir.Node, inputs: Sequence[ir.Value | None]) -> None:
        kinds = {attribute(node, name, "NONE") for name in ("k_quant_type", "v_quant_type")}
        if kinds != {"NONE"} or any(v is not None for v in inputs[12:14]):
            raise Declined("quantized-cache", "keys and values are quantized", at=node)
        if any(v is not None for v in inputs[14:16]):
            raise Declined("query-norm", "query and key are normalized inside, which no CPU kernel does", at=node)
        if read_elsewhere(node, 3):
            raise Declined("score-output", "the scores are read as well", at=node)

    def parts(self, facts: Facts, g: Builder) -> Parts:
        node, heads, shared, size = facts.node, facts.heads, facts.kv_heads, facts.size
        query, key, value = facts.query, facts.key, facts.value
        if key is None or value is None:
            bounds = [0, heads * size, (heads + shared) * size, (heads + 2 * shared) * size]
            query, key, value = (part(g, facts.query, a, b) for a, b in itertools.pairwise(bounds))
        if facts.rotary is not None:
            query, key = (_rotated(g, v, n, facts) for v, n in ((query, heads), (key, shared)))
        query, key, value = split_heads(g, query, heads), split_heads(g, key, shared), split_heads(g, value, shared)
        causal = bool(attribute(node, "causal", 1))
        sink = facts.sink
        if sink is None and attribute(node, "smooth_softmax", 0) == 1:
            sink = g.const(np.zeros(heads, (query.dtype or ir.DataType.FLOAT).numpy()))
        return Parts(
            query=query,
            key=key,
            value=value,
            mask=_mask(g, facts, query, key),
            bias=facts.bias,
            sink=sink,
            scale=scale_of(node, size),
            causal="upper_left" if causal else "none",
            softcap=float(attribute(node, "softcap", 0.0)),
        )

    def extra(self, facts: Facts, parts: Parts, g: Builder) -> Sequence[tuple[ir.Value, ir.Value]]:
        return kept(g, facts.node, parts)


def _mask(g: Builder, facts: Facts, query: ir.Value, key: ir.Value) -> ir.Value:
    """Keys below the length of their row, and within the window."""
    keep = below_lengths(g, facts.lengths, key, more=1)
    window = int(attribute(facts.node, "local_window_size", -1))
    if window < 0:
        return keep
    rows, columns = places(g, query, 2, (1, 1, -1, 1)), places(g, key, 2, (1, 1, 1, -1))
    shape = [1, 1, rows.shape[2], columns.shape[3]]  # type: ignore[index]
    behind = g.op("Sub", rows, columns, dtype=ir.DataType.INT64, shape=shape)
    near = g.op("Less", behind, g.const(np.asarray(window, np.int64)), dtype=ir.DataType.BOOL, shape=shape)
    return g.op("And", keep, near, dtype=ir.DataType.BOOL, shape=broadcast(keep, near))


def _rotated(g: Builder, value: ir.Value, heads: int, facts: Facts) -> ir.Value:
    """A (B, S, N * H) value turned by its positions: of a prompt, the first id of all says where it begins."""
    rotary = facts.rotary
    assert rotary is not None
    zero = g.const(np.array([0], np.int64))
    start = zero
    if rotary.positions is not None:
        flat = g.op("Reshape", rotary.positions, g.const(np.array([-1], np.int64)), dtype=ir.DataType.INT64)
        start = g.op("Slice", flat, zero, g.const(np.array([1], np.int64)), zero, dtype=ir.DataType.INT64, shape=[1])
    turned = 2 * width(rotary.cos, facts.node)
    return g.op(
        "com.microsoft::RotaryEmbedding",
        value,
        start,
        rotary.cos,
        rotary.sin,
        dtype=value.dtype,
        shape=value.shape,
        num_heads=heads,
        interleaved=int(attribute(facts.node, "rotary_interleaved", 0)),
        rotary_embedding_dim=turned if turned < facts.size else None,
    )


def _text(inputs: str, attributes: str, arguments: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g ({inputs}) => (float[B,S,64] y) <int64[1] one = {{1}}> {{
  n = Shape <start = 1, end = 2> (q)
  last = Sub (n, one)
  b = Shape <start = 0, end = 1> (q)
  wide = Expand (last, b)
  lengths = Cast <to = 6> (wide)
  n32 = Cast <to = 6> (n)
  total = Squeeze (n32)
  y, pk, pv = com.microsoft.GroupQueryAttention <{attributes}> ({arguments})
}}"""


_QKV = "float[B,S,64] q, float[B,S,64] k, float[B,S,64] v"
GroupQuerySite.examples = (
    Example(
        text=_text(_QKV, "num_heads = 4, kv_num_heads = 4", "q, k, v, , , lengths, total"),
        fires=1,
        emits={CANONICAL: 1},
    ),
    Example(
        text=_text(
            "float[B,S,128] q",
            "num_heads = 4, kv_num_heads = 2, softcap = 20.0, causal = 0",
            "q, , , , , lengths, total",
        ),
        fires=1,
        emits={CANONICAL: 1},
    ),
    Example(
        text=_text(
            "float[B,S,64] q, float[B,S,32] k, float[B,S,32] v",
            "num_heads = 4, kv_num_heads = 2",
            "q, k, v, , , lengths, total",
        ),
        because="already-best",
    ),
    Example(
        text=_text(f"{_QKV}, float[B,4,P,16] p", "num_heads = 4, kv_num_heads = 4", "q, k, v, p, p, lengths, total"),
        because="cached",
    ),
)
