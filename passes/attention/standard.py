"""ATT103: attention to the standard ai.onnx Attention (opset 23)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..capability import STANDARD
from ..graph import Builder
from ..rule import Context, Declined, Replacement, Rule, Safety
from ..symbols import length, same_dim
from .example_texts import attention_text
from .inputs import additive_mask, fold_heads, split_heads
from .site import Site, require, study

__all__ = ["Standard"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A site; the standard op says everything else by itself."""

    site: Site


class Standard(Rule):
    """Attention as the standard operator.

    ## What it finds
    Any canonical attention without sink logits, in a graph of opset 23 or newer: grouped heads, unequal value
    sizes, softcap, boolean and additive masks.

    ## Why
    It is the one fused attention that every ONNX runtime is meant to know: what target ``portable`` asks for.

    ## Before -> After
    ``canonical::Attention(q, k, v, mask)`` -> ``Attention(q, k, v, mask)`` over (B, S, N * H) tensors with
    q_num_heads and kv_num_heads. The mask is expanded to S rows: onnxruntime refuses a query axis of 1. For the target
    ``portable`` a boolean mask beside a bias becomes the lowest number in it.

    ## When it declines
    ``opset-too-old``, ``sink``, ``softcap`` (before onnxruntime 1.28 it was applied after the mask),
    ``mask-and-bias`` (where another operator of the target takes both), ``causal-lower-right``.

    ## Numerics
    ROUNDING; a row without any key gives 0 for boolean masks. Beside a bias it gives the mean of the values; where the
    source gives 0 there the named assumption fully-masked-rows is recorded.

    ## References
    ONNX operators, ai.onnx.Attention-23.
    """

    code = "ATT103"
    name = "standard-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({"deployml.canonical::Attention"})
    emits = (STANDARD,)
    examples = (
        attention_text(causal="none", opset=23).fires_once(STANDARD),
        attention_text(causal="upper_left", kv_heads=2, opset=23, mask="B,1,1,T").fires_once(STANDARD),
        attention_text(causal="none", opset=21).declines("opset-too-old"),
        attention_text(causal="lower_right", opset=23).declines("causal-lower-right"),
    )

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = study(node)
        require(STANDARD, site, context)
        joined = site.node.mask is not None and site.node.bias is not None
        if joined and context.target.name != "portable":  # others have an operator that takes both
            raise Declined("mask-and-bias", "the operator takes one mask; here a boolean one and a bias meet", at=node)
        if site.node.causal == "lower_right":
            raise Declined("causal-lower-right", "the operator aligns causality to the upper left", at=node)
        return Facts(site)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        site = facts.site
        node = site.node
        mask = node.mask if node.mask is not None else node.bias
        if node.mask is not None and node.bias is not None:
            mask = additive_mask(g, site)
        batch, _, rows, _ = node.query.shape  # type: ignore[misc]
        output = g.op(
            STANDARD,
            fold_heads(g, node.query),
            fold_heads(g, node.key),
            fold_heads(g, node.value),
            None if mask is None else _expanded(g, mask, site),
            dtype=node.query.dtype,
            shape=[batch, rows, site.heads * site.value_size],
            q_num_heads=site.heads,
            kv_num_heads=site.kv_heads,
            scale=node.scale,
            is_causal=1 if node.causal == "upper_left" else None,
            softcap=node.softcap or None,
        )
        return Replacement(
            old=[node.output],
            new=[split_heads(g, output, node.output)],
            **site.about_empty_rows(masked=mask is not None),
        )


def _expanded(g: Builder, mask: ir.Value, site: Site) -> ir.Value:
    """The mask with full query and key axes; ranks below 2 and axes of 1 are not taken by onnxruntime."""
    query, key = site.node.query, site.node.key
    assert query.shape is not None and key.shape is not None
    shape = mask.shape
    full = shape is not None and len(shape) == 4
    if full and same_dim(shape[2], query.shape[2]) and same_dim(shape[3], key.shape[2]):  # type: ignore[index]
        return mask
    ones = g.const(np.array([1, 1], np.int64))
    target = g.op("Concat", ones, length(g, query, 2), length(g, key, 2), axis=0, dtype=ir.DataType.INT64, shape=[4])
    head = list(shape[:2]) if full else [1, 1]  # type: ignore[index]
    return g.op("Expand", mask, target, dtype=mask.dtype, shape=[*head, query.shape[2], key.shape[2]])
