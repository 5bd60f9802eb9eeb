"""ATT010: key/value heads repeated before the attention are read once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import canonical
from ..graph import Builder, attribute, constant, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["RepeatedHeads"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The attention, and key and value before their heads were repeated, by the same count."""

    node: ir.Node
    key: ir.Value
    value: ir.Value


class RepeatedHeads(Rule):
    """Key and value heads that were repeated to match the query heads.

    ## What it finds
    A canonical attention whose key and value both come from Expand over a head-group axis and Reshape
    (``repeat_kv``), from Expand of a single head (multi-query), from Tile of a single head or from Gather with
    a constant run of repeated indices (``repeat_interleave``).

    ## Why
    A grouped attention reads each key/value head once: less memory traffic and a smaller cache.

    ## Before -> After
    ``canonical::Attention(q, Reshape(Expand(Unsqueeze(k))), ...)`` -> ``canonical::Attention(q, k, v)`` with
    kv_heads below heads.

    ## When it declines
    ``uneven-repeat`` when key and value were repeated differently; otherwise there is nothing to find.

    ## Numerics
    ROUNDING (the same products, possibly summed in another order).

    ## References
    Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models, 2023.
    """

    code = "ATT010"
    name = "repeated-heads"
    safety = Safety.ROUNDING
    anchors = frozenset({f"{canonical.DOMAIN}::{canonical.NAME}"})
    emits = (f"{canonical.DOMAIN}::{canonical.NAME}",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = canonical.read(node)
        key, value = _single(site.key), _single(site.value)
        if key is None and value is None:
            raise Declined("no-match", "no repeated heads")
        if key is None or value is None or canonical.heads(key) != canonical.heads(value):
            raise Declined("uneven-repeat", "key and value heads are not repeated alike", at=node)
        return Facts(node, key, value)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node = facts.node
        inputs = [node.inputs[0], facts.key, facts.value, *node.inputs[3:]]
        attributes = {a.name: a.value for a in node.attributes.values()}
        made = g.op(
            f"{canonical.DOMAIN}::{canonical.NAME}",
            *inputs,
            outputs=len(node.outputs),
            dtype=node.outputs[0].dtype,
            shape=node.outputs[0].shape,
            **attributes,
        )
        new = [made] if len(node.outputs) == 1 else list(made)
        return Replacement(old=list(node.outputs), new=new)


def _single(value: ir.Value) -> ir.Value | None:
    """The (B, Nkv, T, H) tensor whose heads a value repeats in runs, or None."""
    for reader in _READERS:
        found = reader(value)
        if found is not None:
            heads, wide = canonical.heads(found), canonical.heads(value)
            if heads is not None and wide is not None and heads < wide:
                return found
    return None


def _expanded_groups(value: ir.Value) -> ir.Value | None:
    """Reshape of (B, Nkv, G, T, H), made by Expand of (B, Nkv, 1, T, H)."""
    reshape = producer(value, "Reshape")
    expand = None if reshape is None else _behind(reshape.inputs[0], "Expand", "Tile")
    source = None if expand is None else expand.inputs[0]
    shape, wide = dims(source), dims(expand.outputs[0]) if expand is not None else None
    if source is None or shape is None or wide is None or len(shape) != 5 or shape[2] != 1:
        return None
    if (shape[0], shape[1], *shape[3:]) != (wide[0], wide[1], *wide[3:]):
        return None
    unsqueeze = producer(source, "Unsqueeze")
    axes = None if unsqueeze is None else constant(unsqueeze.inputs[1])
    return unsqueeze.inputs[0] if unsqueeze is not None and axes is not None and list(axes) in ([2], [-3]) else None


def _one_head(value: ir.Value) -> ir.Value | None:
    """Expand of (B, 1, T, H) to (B, N, T, H)."""
    node = _behind(value, "Expand", "Tile")
    source = None if node is None else node.inputs[0]
    shape, wide = dims(source), dims(value)
    if (
        shape is None
        or wide is None
        or len(shape) != 4
        or shape[1] != 1
        or (shape[0], *shape[2:]) != (wide[0], *wide[2:])
    ):
        return None
    return source


def _gathered(value: ir.Value) -> ir.Value | None:
    """Gather over the head axis with indices 0 0 1 1 ...: repeat_interleave."""
    node = producer(value, "Gather")
    if node is None or attribute(node, "axis", 0) not in (1, -3):
        return None
    source, indices = node.inputs[0], constant(node.inputs[1])
    count = canonical.heads(source) if source is not None else None
    if indices is None or count is None or indices.ndim != 1 or indices.size % count:
        return None
    return source if np.array_equal(indices, np.repeat(np.arange(count), indices.size // count)) else None


_READERS: tuple[Callable[[ir.Value], ir.Value | None], ...] = (_expanded_groups, _one_head, _gathered)


def _behind(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The producer of a value, looking through copies that change nothing."""
    for _ in range(4):
        node = producer(value, "Identity", "Contiguous")
        if node is None:
            break
        value = node.inputs[0]
    return producer(value, *ops)


def _text(body: str, opset: int = 20) -> str:
    return f"""<ir_version: 10, opset_import: ["" : {opset}, "{canonical.DOMAIN}" : 1]>
g (float[B,4,S,16] q, float[B,2,S,16] k, float[B,1,S,16] one) => (float[B,4,S,16] y)
<int64[1] ax = {{2}}, int64[5] groups = {{1,1,2,1,1}}, int64[4] shape = {{0,4,-1,16}}, int64[4] many = {{1,4,1,1}},
 float[B,2,1,S,16] k5, float[B,2,2,S,16] kw, float[B,4,S,16] kr, float[B,4,S,16] onew> {{
{body}
}}"""


_REPEAT = "  k5 = Unsqueeze (k, ax)\n  kw = Expand (k5, groups)\n  kr = Reshape (kw, shape)\n"

RepeatedHeads.examples = (
    Example(text=_text(_REPEAT + f"  y = {canonical.DOMAIN}.Attention <scale = 0.25> (q, kr, kr)"), fires=1),
    Example(
        text=_text(f"  onew = Expand (one, many)\n  y = {canonical.DOMAIN}.Attention <scale = 0.25> (q, onew, onew)"),
        fires=1,
    ),
    Example(
        text=_text(_REPEAT + f"  y = {canonical.DOMAIN}.Attention <scale = 0.25> (q, kr, q)"), because="uneven-repeat"
    ),
    Example(text=_text(f"  y = {canonical.DOMAIN}.Attention <scale = 0.25> (q, q, q)"), because="no-match"),
)
