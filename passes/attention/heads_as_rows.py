"""ATT016: heads that stand where the rows of an attention would, and rows where its heads would."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .. import canonical
from ..canonical import AttentionNode
from ..graph import Builder, dims
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .example_texts import attention_text

__all__ = ["HeadsAsRows"]

_NAME = f"{canonical.DOMAIN}::{canonical.NAME}"


class HeadsAsRows(Rule):
    """A query of (B, S, N, H) over one key and value for all heads, with the rows in front of the heads.

    ## What it finds
    A canonical attention with one key/value head, whose query has a second axis of unknown and a third of fixed size:
    what ``einsum("bshc,btc->bsht", q, latent)`` is, the scores of latent attention with its projections absorbed.

    ## Why
    Operators take the number of heads as an attribute, and every (b, s, n) is a row of its own where all heads share
    their keys: rows and heads may change places.

    ## Before -> After
    ``canonical::Attention(q, k, v)`` over (B, S, N, H) -> the same over (B, N, S, H), between two Transposes.

    ## When it declines
    ``unknown-heads`` where causality is counted over the rows, or a sink is given for each head.

    ## Numerics
    ROUNDING: the same products in another order.

    ## References
    DeepSeek-AI, DeepSeek-V2, 2024, section 2.1.2 and appendix C.
    """

    code = "ATT016"
    name = "heads-as-rows"
    safety = Safety.ROUNDING
    anchors = frozenset({_NAME})
    emits = (_NAME,)

    def examine(self, node: ir.Node, context: Context) -> AttentionNode:
        site = canonical.read(node)
        query, key, value = (dims(v) or () for v in (site.query, site.key, site.value))
        if len(query) != 4 or isinstance(query[1], int) or not isinstance(query[2], int):
            raise Declined("no-match", "the heads stand in front of the rows")
        if key[1:2] != (1,) or value[1:2] != (1,):
            raise Declined("no-match", "keys and values have an axis of heads too")
        if site.sink is not None or site.causal != "none":
            raise Declined("unknown-heads", "heads stand as rows beside a sink or a causal attribute", at=node)
        return site

    def build(self, site: AttentionNode, g: Builder) -> Replacement:
        inputs: list[ir.Value | None] = [_turned(g, site.query), site.key, site.value]
        inputs += [None if v is None else _turned(g, v) for v in (site.mask, site.bias)]
        while inputs[-1] is None:
            inputs.pop()
        old = site.node.outputs
        attributes = {a.name: a.value for a in site.node.attributes.values()}
        made = g.op(_NAME, *inputs, outputs=len(old), dtype=old[0].dtype, shape=_swapped(old[0]), **attributes)
        results = [made] if isinstance(made, ir.Value) else list(made)
        for result, value in zip(results, old, strict=True):
            result.shape = None if (shape := _swapped(value)) is None else ir.Shape(shape)
        return Replacement(old=list(old), new=[_turned(g, r) for r in results])


def _swapped(value: ir.Value) -> list[int | ir.SymbolicDim] | None:
    """The shape with the second and third axis from the last exchanged."""
    if value.shape is None:
        return None
    *lead, heads, rows, last = value.shape
    return [*lead, rows, heads, last]


def _turned(g: Builder, value: ir.Value) -> ir.Value:
    """What stands beside (.., N, S, T), as beside (.., S, N, T)."""
    shape = dims(value)
    if shape is None:
        raise Declined("unknown-heads", "the rank of what stands beside the scores is not known", at=value)
    if len(shape) == 1 or (len(shape) == 2 and shape[0] == 1):
        return value
    if len(shape) == 2:
        assert value.shape is not None
        axis = g.const(np.array([0], np.int64))
        value = g.op("Unsqueeze", value, axis, dtype=value.dtype, shape=[1, *value.shape])
    rank = max(len(shape), 3)
    perm = [*range(rank - 3), rank - 2, rank - 3, rank - 1]
    return g.op("Transpose", value, perm=perm, dtype=value.dtype, shape=_swapped(value))


HeadsAsRows.examples = (
    Example(text=attention_text(heads="W", query="4", kv_heads=1).text, fires=1, emits={_NAME: 1, "Transpose": 2}),
    Example(
        text=attention_text(heads="W", query="4", kv_heads=1, mask="W,1,T", bias="B,W,4,T").text,
        fires=1,
        emits={_NAME: 1, "Transpose": 4},
    ),
    Example(text=attention_text(heads="W", query="4", kv_heads=1, bias="4,T", weights=True).text, fires=1),
    Example(text=attention_text(heads="W", kv_heads=1).text, because="no-match"),
    Example(text=attention_text(heads="W", query="4", kv_heads=1, causal="upper_left").text, because="unknown-heads"),
)
