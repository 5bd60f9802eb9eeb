"""ATT011: key/value heads repeated before a rotary embedding, a norm or a transpose are read once."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .. import canonical
from ..graph import Builder
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .narrow import distinct_heads, narrowed

__all__ = ["EarlyRepeat"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The attention whose key and value repeat the same number of heads."""

    node: ir.Node


class EarlyRepeat(Rule):
    """Key and value heads repeated some way before the attention.

    ## What it finds
    A canonical attention whose key and value both lead, through operators that treat every head alike (rotary
    embedding written out, casts, transposes, slices of other axes), to a repetition of heads: Expand and Reshape
    over a group axis, Expand of one head, Gather with a run of repeated indices.

    ## Why
    What is computed for each of the repeated heads is the same; one of each run is enough, for that work and for
    the attention, which then is a grouped one.

    ## Before -> After
    ``canonical::Attention(q, rope(repeat(k)), repeat(v))`` -> ``canonical::Attention(q, rope(k), v)``.

    ## When it declines
    ``uneven-repeat`` when key and value repeat different counts; otherwise there is nothing to find.

    ## Numerics
    ROUNDING (the same products, possibly summed in another order).

    ## References
    Ainslie et al., GQA: Training Generalized Multi-Query Transformer Models, 2023.
    """

    code = "ATT011"
    name = "early-repeat"
    safety = Safety.ROUNDING
    anchors = frozenset({f"{canonical.DOMAIN}::{canonical.NAME}"})
    emits = (f"{canonical.DOMAIN}::{canonical.NAME}",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        site = canonical.read(node)
        counts = distinct_heads(site.key, 1), distinct_heads(site.value, 1)
        if counts == (None, None):
            raise Declined("no-match", "no repeated heads")
        if counts[0] != counts[1]:
            raise Declined("uneven-repeat", f"{counts[0]} key heads and {counts[1]} value heads differ", at=node)
        return Facts(node)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node, site = facts.node, canonical.read(facts.node)
        inputs = [site.query, narrowed(site.key, 1, g), narrowed(site.value, 1, g), *node.inputs[3:]]
        made = g.op(
            f"{canonical.DOMAIN}::{canonical.NAME}",
            *inputs,
            outputs=len(node.outputs),
            dtype=node.outputs[0].dtype,
            shape=node.outputs[0].shape,
            **{a.name: a.value for a in node.attributes.values()},
        )
        return Replacement(old=list(node.outputs), new=[made] if len(node.outputs) == 1 else list(made))


def _text(body: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20, "{canonical.DOMAIN}" : 1]>
g (float[B,4,S,16] q, float[B,S,2,1,16] k, float[B,S,2,1,16] v, float[1,1,S,16] cos) => (float[B,4,S,16] y)
<int64[5] groups = {{1,1,1,2,1}}, int64[4] shape = {{0,0,4,16}}, float[B,S,2,2,16] kw, float[B,S,2,2,16] vw,
 float[B,S,4,16] kr, float[B,S,4,16] vr, float[B,4,S,16] kt, float[B,4,S,16] vt, float[B,4,S,16] ke> {{
{body}
}}"""


_KEY = "  kw = Expand (k, groups)\n  kr = Reshape (kw, shape)\n  kt = Transpose <perm = [0,2,1,3]> (kr)\n"
_VALUE = "  vw = Expand (v, groups)\n  vr = Reshape (vw, shape)\n  vt = Transpose <perm = [0,2,1,3]> (vr)\n"
_CALL = f"  y = {canonical.DOMAIN}.Attention <scale = 0.25>"

EarlyRepeat.examples = (
    Example(text=_text(_KEY + _VALUE + "  ke = Mul (kt, cos)\n" + f"{_CALL} (q, ke, vt)"), fires=1),
    Example(text=_text(_KEY + _VALUE + f"{_CALL} (q, kt, vt)"), fires=1),
    Example(text=_text(_KEY + f"{_CALL} (q, kt, q)"), because="uneven-repeat"),
    Example(text=_text(_KEY + _VALUE + "  ke = Mul (kt, q)\n" + f"{_CALL} (q, ke, vt)"), because="uneven-repeat"),
)
