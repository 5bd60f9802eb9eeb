"""ATT104: attention to the project's own operator, deployml::FlashAttention."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from ...custom_ops import DOMAIN, library_path
from ...custom_ops.flash_attention import NAME, Attributes, Signature
from ..canonical import AttentionNode
from ..graph import Builder
from ..masks import Always, Causal, KeyPadding
from ..rule import Context, Declined, Replacement, Rule, Safety
from .example_texts import attention_text
from .inputs import fold_heads, keep_flags, split_heads
from .relative import RelativeTable, relative_table
from .site import Site, require, study

__all__ = ["OWN", "OwnAttention"]

OWN = f"{DOMAIN}::{NAME}"


@dataclass(frozen=True, slots=True)
class Facts:
    """A site, and what of its mask and bias is handed to the kernel in which form.

    Attributes:
        site: The site.
        mask: Boolean mask as it stands.
        padding: Key padding, handed over as (B, 1, 1, T) flags.
        bias: Additive bias as it stands.
        table: The bias as relative positions.
        window: Keys visible to a row, itself included.
        lower_right: Whether causality is aligned to the last key and said by the attributes.
    """

    site: Site
    mask: ir.Value | None = None
    padding: KeyPadding | None = None
    bias: ir.Value | None = None
    table: RelativeTable | None = None
    window: int | None = None
    lower_right: bool = False

    @property
    def signature(self) -> Signature:
        """Which inputs and outputs the node has."""
        return Signature(
            mask=self.mask is not None or self.padding is not None,
            bias=self.bias is not None,
            table=self.table is not None,
            sink=self.site.node.sink is not None,
            weights=self.site.node.weights is not None,
        )


class OwnAttention(Rule):
    """Attention that no operator of onnxruntime computes, or only by building the full score matrix.

    ## What it finds
    Any canonical attention with static head counts: masks and biases of any broadcast, softcap, sink logits,
    either causal alignment, windows, grouped heads, unequal value sizes, weights that are read elsewhere. A bias that
    is looked up by key minus query position (T5, MPNet) becomes a table of one row a head.

    ## Why
    The kernel is tiled, never holds the score matrix, broadcasts masks and biases where they are read and skips
    the blocks they rule out. With a table the (S, T) bias is never made. The model carries a function body of the
    same meaning, so that it also runs where the library is not loaded.

    ## Before -> After
    ``canonical::Attention(q, k, v, mask, bias)`` -> ``deployml::FlashAttention_mask_bias(q, k, v, mask, bias)``
    over (B, S, N * H) tensors.

    ## When it declines
    ``no-capability`` for a target without the operator, ``no-library`` where it is not built.

    ## Numerics
    ROUNDING, float32 accumulation. A row without any key gives 0, as for boolean masks in
    scaled_dot_product_attention; a softmax without a guard gives NaN there (fully-masked-rows).

    ## References
    Dao, FlashAttention-2, 2023; Milakov and Gimelshein, Online normalizer calculation for softmax, 2018.
    """

    code = "ATT104"
    name = "own-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({"deployml.canonical::Attention"})
    emits = tuple(
        f"{DOMAIN}::{Signature(mask=mask, bias=bias, table=table, sink=sink, weights=weights).op_type}"
        for weights, sink, table, bias, mask in itertools.product((False, True), repeat=5)
    )
    examples = (
        attention_text(softcap=30.0).fires_once(OWN),
        attention_text(causal="lower_right", key="T", mask="1,1,S,T").fires_once(f"{OWN}_mask"),
        attention_text(weights=True, bias="1,1,S,T").fires_once(f"{OWN}_bias_weights"),
        attention_text(heads="unknown").declines("unknown-heads"),
        attention_text(heads=4, kv_heads=3).declines("head-groups"),
    )

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = study(node)
        require(OWN, site, context)
        if library_path("cpu") is None:
            raise Declined("no-library", f"the library of {OWN} is not built here, so it cannot be proven", at=node)
        return _facts(site)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        site, node, signature = facts.site, facts.site.node, facts.signature
        attributes = Attributes(
            num_heads=site.heads,
            kv_heads=site.kv_heads,
            scale=abs(node.scale),
            causal=int(site.causal or node.causal != "none" or facts.lower_right),
            lower_right=int(node.causal == "lower_right" or facts.lower_right),
            window_left=-1 if facts.window is None else facts.window - 1,
            softcap=node.softcap,
        )
        mask = _flags(g, site, facts.padding) if facts.padding is not None else facts.mask
        extra = [mask, facts.bias, _table(g, facts.table), node.sink]
        batch, _, rows, _ = node.query.shape  # type: ignore[misc]
        made = g.op(
            f"{DOMAIN}::{signature.op_type}",
            fold_heads(g, _signed_query(g, node)),
            fold_heads(g, node.key),
            fold_heads(g, node.value),
            *[value for value in extra if value is not None],
            outputs=len(signature.outputs),
            dtype=node.query.dtype,
            shape=[batch, rows, site.heads * site.value_size],
            **asdict(attributes),
        )
        output, *weights = made if node.weights is not None else (made,)
        for value in weights:
            value.dtype, value.shape = node.query.dtype, _weights_shape(site)
        return Replacement(
            old=[node.output, *([] if node.weights is None else [node.weights])],
            new=[split_heads(g, output, node.output), *weights],
            **site.about_empty_rows(masked=site.masked, gives_zero=True)
            | ({} if facts.table is None else {"forbidding": ()}),
        )


def _signed_query(g: Builder, node: AttentionNode) -> ir.Value:
    """The query, with the sign of the scale, which the operator takes without one."""
    query = node.query
    return query if node.scale >= 0 else g.op("Neg", query, dtype=query.dtype, shape=query.shape)


def _facts(site: Site) -> Facts:
    """The form in which mask and bias cost the kernel least."""
    node = site.node
    if site.causal_is_all or site.window is not None:
        return Facts(site, window=site.window)
    if site.padding is not None:
        return Facts(site, padding=site.padding)
    return _behind_past(site) or _as_table(site) or Facts(site, mask=node.mask, bias=node.bias)


def _behind_past(site: Site) -> Facts | None:
    """The site of new tokens behind a past: causality aligned to the last key, and key padding at most beside it."""
    if site.square or site.node.causal != "none":
        return None
    causal = [c for c in site.typed or () if isinstance(c, Causal) and c.lower_right]
    paddings = [c for c in site.typed or () if isinstance(c, KeyPadding)]
    if len(causal) != 1 or len(paddings) > 1 or len(causal) + len(paddings) != len(site.typed or ()):
        return None
    return Facts(site, padding=paddings[0] if paddings else None, lower_right=True)


def _as_table(site: Site) -> Facts | None:
    """The site with its bias as relative positions, where that and typed masks are all that it holds."""
    node, facts = site.node, site.bias_facts
    if node.bias is None or facts is None or not facts.exact or len(facts.additive) != 1:
        return None
    if node.causal == "lower_right" and not site.square:
        return None
    typed = [c for c in facts.conjuncts if not isinstance(c, Always)]
    paddings = [c for c in typed if isinstance(c, KeyPadding)]
    causal = [c for c in typed if isinstance(c, Causal) and c.upper_left]
    if len(paddings) + len(causal) != len(typed) or len(paddings) > (node.mask is None) or (causal and not site.causal):
        return None
    table = relative_table(facts.additive[0], node.query, node.key)
    if table is None:
        return None
    return Facts(site, mask=node.mask, padding=paddings[0] if paddings else None, table=table)


def _flags(g: Builder, site: Site, padding: KeyPadding) -> ir.Value:
    """The (B, 1, 1, T) flags of key padding: the form that the kernel reads with least work."""
    flags = keep_flags(g, site, padding)
    assert flags.shape is not None
    batch, keys = flags.shape
    return g.op("Unsqueeze", flags, g.const(np.array([1, 2], np.int64)), dtype=flags.dtype, shape=[batch, 1, 1, keys])


def _table(g: Builder, table: RelativeTable | None) -> ir.Value | None:
    """The (heads, distances) table; constant folding makes a constant of it where the weight is one."""
    if table is None:
        return None
    rows = g.op("Gather", table.weight, g.const(np.array(table.buckets, np.int64)), axis=0, dtype=table.weight.dtype)
    return g.op("Transpose", rows, perm=[1, 0], dtype=table.weight.dtype)


def _weights_shape(site: Site) -> ir.Shape:
    query, key = site.node.query.shape, site.node.key.shape
    assert query is not None and key is not None
    return ir.Shape([query[0], site.heads, query[2], key[2]])
