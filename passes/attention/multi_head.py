"""ATT102: attention to onnxruntime's MultiHeadAttention."""

from __future__ import annotations

from dataclasses import dataclass, replace

import ml_dtypes
import onnx_ir as ir

from ..capability import MHA
from ..graph import Builder
from ..rule import Context, Declined, Replacement, Rule, Safety
from .example_texts import attention_text
from .inputs import additive_mask, fold_heads, key_padding, repeat_heads, split_heads
from .site import Site, require, study

__all__ = ["MultiHead"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A site and how its mask is carried."""

    site: Site
    padding: bool
    bias: bool
    unidirectional: bool


class MultiHead(Rule):
    """Attention of any direction with a head for each query head.

    ## What it finds
    A canonical attention, self or cross, with any mask or bias. Shared key/value heads are repeated, which
    costs a copy: a grouped site goes here only where nothing better takes it.

    ## Why
    MultiHeadAttention reads (B, S, N * H) tensors, so the transposes around the heads vanish, and without a mask
    it runs the tiled kernel of the CPU provider.

    ## Before -> After
    ``canonical::Attention(q, k, v, mask, bias)`` -> ``MultiHeadAttention(q, k, v, , key_padding_mask,
    attention_bias)``. A mask that is proven to be key padding alone becomes the (B, T) key_padding_mask with
    mask_filter_value set to the lowest finite number (the default of -10000 is only nearly a mask). Everything
    else becomes an additive bias. Causality becomes ``unidirectional`` when the scores are provably square.

    ## When it declines
    ``softcap``, ``sink``, ``dtype``, ``weights-output``: see the capability table.

    ## Numerics
    ROUNDING. A row without any key gives the mean of the values; where the source gives 0 there the named
    assumption fully-masked-rows is recorded.

    ## References
    onnxruntime docs/ContribOperators.md, com.microsoft.MultiHeadAttention; Vaswani et al., 2017.
    """

    code = "ATT102"
    name = "multi-head-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({"deployml.canonical::Attention"})
    emits = (MHA,)
    examples = (
        attention_text(causal="none").fires_once(MHA),
        attention_text(causal="none", mask="B,1,S,T").fires_once(MHA),
        attention_text(softcap=30.0).declines("softcap"),
        attention_text(heads="unknown").declines("unknown-heads"),
    )

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = study(node)
        row = require(MHA, site, context)
        if site.kv_heads != site.heads and context.target.name == "cpu" and site.causal:
            raise Declined("grouped-heads", f"{site.kv_heads} key/value heads would be repeated to {site.heads}")
        unidirectional = site.causal_is_all or (site.square and site.node.causal != "none")
        padding = site.padding is not None and row.padding_mask
        bias = site.masked and not padding and not site.causal_is_all
        return Facts(site, padding, bias or (site.node.causal != "none" and not unidirectional), unidirectional)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        site = facts.site
        node = site.node
        bias = _bias(g, facts)
        batch, _, rows, _ = node.query.shape  # type: ignore[misc]
        output = g.op(
            MHA,
            fold_heads(g, node.query),
            fold_heads(g, repeat_heads(g, node.key, site.heads)),
            fold_heads(g, repeat_heads(g, node.value, site.heads)),
            None,
            key_padding(g, site) if facts.padding else None,
            bias,
            dtype=node.query.dtype,
            shape=[batch, rows, site.heads * site.value_size],
            num_heads=site.heads,
            scale=node.scale,
            unidirectional=1 if facts.unidirectional else None,
            mask_filter_value=_lowest(node.query) if facts.padding else None,
        )
        return Replacement(
            old=[node.output],
            new=[split_heads(g, output, node.output)],
            **site.about_empty_rows(masked=facts.padding or facts.bias),
        )


def _bias(g: Builder, facts: Facts) -> ir.Value | None:
    if not facts.bias:
        return None
    site = facts.site
    if facts.padding or site.causal_is_all:  # what the mask says stands elsewhere
        site = replace(site, node=replace(site.node, mask=None, bias=None))
    return additive_mask(g, site, include_causal=not facts.unidirectional, clamp=True)


def _lowest(value: ir.Value) -> float:
    dtype = value.dtype or ir.DataType.FLOAT
    return float(ml_dtypes.finfo(dtype.numpy()).min)
