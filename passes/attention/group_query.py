"""ATT101: causal attention to onnxruntime's GroupQueryAttention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..capability import GQA
from ..graph import Builder
from ..rule import Context, Declined, Replacement, Rule, Safety
from ..symbols import length
from .example_texts import attention_text
from .inputs import additive_mask, fold_heads, split_heads
from .site import Site, require, study

__all__ = ["GroupQuery"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A site, whether a bias input carries its mask, and the window attribute."""

    site: Site
    with_bias: bool
    window: int


class GroupQuery(Rule):
    """Causal attention with shared key/value heads.

    ## What it finds
    A canonical attention whose scores are square and provably causal (by attribute, or by a mask that entails
    ``j <= i``), with one head size that 8 divides. Grouped, multi-query and plain heads alike.

    ## Why
    GroupQueryAttention reads the key/value heads once instead of repeating them, skips the blocks above the
    diagonal, and on the CPU and on CUDA runs a tiled kernel that never holds the score matrix.

    ## Before -> After
    ``canonical::Attention(q, k, v, mask)`` -> ``GroupQueryAttention(q, k, v, , , seqlens_k, total, , , , bias)``
    over (B, S, N * H) tensors. ``seqlens_k`` is T - 1 for every row: padding stays in the bias, where left,
    right and hole padding mean the same. The present outputs are asked for because the tiled kernel of the CPU
    provider runs only with them.

    ## When it declines
    ``not-causal``, ``head-size``, ``cross-attention``, ``unequal-value-size``, ``dtype``, ``softcap``, ``sink``:
    see the capability table.

    ## Numerics
    ROUNDING. A row without any key gives 0, as boolean masks of scaled_dot_product_attention do. A finite mask
    written by hand gives the mean of the values there instead: the named assumption fully-masked-rows.

    ## References
    onnxruntime docs/ContribOperators.md, com.microsoft.GroupQueryAttention; Ainslie et al., GQA, 2023.
    """

    code = "ATT101"
    name = "group-query-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({"deployml.canonical::Attention"})
    emits = (GQA,)
    examples = (
        attention_text(causal="upper_left", kv_heads=2).fires_once(GQA),
        attention_text(causal="upper_left", query="S", key="S", mask="B,1,S,S").fires_once(GQA),
        attention_text(causal="none", key="S").declines("not-causal"),
        attention_text(causal="upper_left", head_size=12).declines("head-size"),
    )

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = study(node)
        row = require(GQA, site, context)
        if not site.causal:
            raise Declined("not-causal", "bidirectional attention is computed faster by another operator", at=node)
        if site.causal_is_all:
            return Facts(site, with_bias=False, window=-1)
        if site.window is not None and row.window:
            return Facts(site, with_bias=False, window=site.window)
        return Facts(site, with_bias=site.masked, window=-1)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        site = facts.site
        node = site.node
        bias = additive_mask(g, site, clamp=True) if facts.with_bias else None
        total, lengths = _lengths(g, site)
        batch, _, rows, _ = node.query.shape  # type: ignore[misc]
        output, *_ = g.op(
            GQA,
            fold_heads(g, node.query),
            fold_heads(g, node.key),
            fold_heads(g, node.value),
            None,
            None,
            lengths,
            total,
            None,
            None,
            None,
            bias,
            node.sink,
            outputs=3,
            dtype=node.query.dtype,
            shape=[batch, rows, site.heads * site.value_size],
            num_heads=site.heads,
            kv_num_heads=site.kv_heads,
            scale=node.scale,
            softcap=node.softcap or None,
            local_window_size=facts.window if facts.window >= 0 else None,
        )
        return Replacement(
            old=[node.output],
            new=[split_heads(g, output, node.output)],
            **site.about_empty_rows(masked=facts.with_bias),
        )


def _lengths(g: Builder, site: Site) -> tuple[ir.Value, ir.Value]:
    """total_sequence_length (int32 scalar) and seqlens_k (int32, T - 1 for each row of the batch)."""
    size = length(g, site.node.key, 2)
    narrow = g.op("Cast", size, to=ir.DataType.INT32, dtype=ir.DataType.INT32, shape=[1])
    total = g.op("Squeeze", narrow, dtype=ir.DataType.INT32, shape=[])
    last = g.op("Sub", narrow, g.const(np.array([1], np.int32)), dtype=ir.DataType.INT32, shape=[1])
    batch = site.node.query.shape[0]  # type: ignore[index]
    return total, g.op("Expand", last, length(g, site.node.query, 0), dtype=ir.DataType.INT32, shape=[batch])
