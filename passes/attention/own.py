"""ATT104: attention to the project's own operator, deployml::FlashAttention."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import onnx_ir as ir

from ...custom_ops import DOMAIN, library_path
from ...custom_ops.flash_attention import NAME, Attributes, Signature, add_function
from ..graph import Builder
from ..rule import Context, Declined, Replacement, Rule, Safety
from .example_texts import attention_text
from .inputs import fold_heads, keep_flags, split_heads
from .site import Site, require, study

__all__ = ["OWN", "OwnAttention", "add_bodies"]

OWN = f"{DOMAIN}::{NAME}"


@dataclass(frozen=True, slots=True)
class Facts:
    """A site, and which of its mask and bias are handed to the kernel."""

    site: Site
    with_mask: bool
    with_bias: bool
    window: int | None


class OwnAttention(Rule):
    """Attention that no operator of onnxruntime computes, or only by building the full score matrix.

    ## What it finds
    Any canonical attention with static head counts: masks and biases of any broadcast, softcap, sink logits,
    either causal alignment, windows, grouped heads, unequal value sizes.

    ## Why
    The kernel is tiled, never holds the score matrix, broadcasts masks and biases where they are read and skips
    the blocks they rule out. The model carries a function body of the same meaning, so that it also runs where
    the library is not loaded.

    ## Before -> After
    ``canonical::Attention(q, k, v, mask, bias)`` -> ``deployml::FlashAttention_mask_bias(q, k, v, mask, bias)``
    over (B, S, N * H) tensors.

    ## When it declines
    ``no-capability`` for a target without a built library, ``weights-output``.

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
        f"{DOMAIN}::{Signature(mask=mask, bias=bias, sink=sink).op_type}"
        for sink in (False, True)
        for bias in (False, True)
        for mask in (False, True)
    )
    examples = (
        attention_text(softcap=30.0).fires_once(OWN),
        attention_text(causal="lower_right", key="T", mask="1,1,S,T").fires_once(f"{OWN}_mask"),
        attention_text(heads="unknown").declines("unknown-heads"),
        attention_text(heads=4, kv_heads=3).declines("head-groups"),
    )

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = study(node)
        require(OWN, site, context)
        if library_path("cpu") is None:
            raise Declined("no-library", f"the library of {OWN} is not built here, so it cannot be proven", at=node)
        covered = site.causal_is_all or site.window is not None
        return Facts(
            site,
            with_mask=(site.node.mask is not None or site.padding is not None) and not covered,
            with_bias=site.node.bias is not None and site.padding is None and not covered,
            window=site.window,
        )

    def build(self, facts: Facts, g: Builder) -> Replacement:
        site = facts.site
        node = site.node
        signature = Signature(mask=facts.with_mask, bias=facts.with_bias, sink=node.sink is not None)
        attributes = Attributes(
            num_heads=site.heads,
            kv_heads=site.kv_heads,
            scale=node.scale,
            causal=int(site.causal or node.causal != "none"),
            lower_right=int(node.causal == "lower_right"),
            window_left=-1 if facts.window is None else facts.window - 1,
            softcap=node.softcap,
        )
        extra = [
            _mask(g, site) if facts.with_mask else None,
            node.bias if facts.with_bias else None,
            node.sink,
        ]
        batch, _, rows, _ = node.query.shape  # type: ignore[misc]
        output = g.op(
            f"{DOMAIN}::{signature.op_type}",
            fold_heads(g, node.query),
            fold_heads(g, node.key),
            fold_heads(g, node.value),
            *[value for value in extra if value is not None],
            dtype=node.query.dtype,
            shape=[batch, rows, site.heads * site.value_size],
            **asdict(attributes),
        )
        # A padding bias of finite numbers is handed over as flags; only rows without any key tell the two apart.
        as_flags = facts.with_mask and node.bias is not None and not facts.with_bias
        guarded = node.empty_rows == "zero" and not as_flags
        assumptions = ("fully-masked-rows",) if site.masked and not guarded else ()
        return Replacement(
            old=[node.output],
            new=[split_heads(g, output, node.output)],
            assumptions=assumptions,
            rows_of=node.node,
            forbidding=site.forbidding,
        )


def _mask(g: Builder, site: Site) -> ir.Value | None:
    """The mask as the kernel reads it with least work: (B, 1, 1, T) flags where it is key padding alone."""
    if site.padding is None:
        return site.node.mask
    flags = keep_flags(g, site)
    assert flags.shape is not None
    batch, keys = flags.shape
    return g.op("Unsqueeze", flags, g.const(np.array([1, 2], np.int64)), dtype=flags.dtype, shape=[batch, 1, 1, keys])


def add_bodies(model: ir.Model) -> None:
    """Give the model the function body of every own attention it uses."""
    for op_type in sorted({n.op_type for n in model.graph.all_nodes() if n.domain == DOMAIN}):
        if op_type.split("_")[0] == NAME:
            add_function(model, Signature.of(op_type))
