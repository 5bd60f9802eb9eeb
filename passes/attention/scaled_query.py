"""ATT115: a constant factor on the query or the key becomes part of the attention's scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from ..capability import GQA, MHA, STANDARD
from ..graph import Builder, attribute, dims
from ..look import times_scalar
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .own import OwnAttention

__all__ = ["ScaledQuery"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The node, which of its inputs was multiplied, what stood there before, and the scale with the factor in it."""

    node: ir.Node
    place: int
    source: ir.Value
    scale: float


class ScaledQuery(Rule):
    """A query or a key that is multiplied by one number right before a fused attention.

    ## What it finds
    A lowered attention over separate tensors whose query or key is ``x * c`` or ``x / c`` with a constant scalar, which
    nothing else reads: ``self.q_proj(x) * self.scaling`` of Whisper, OPT and the fairseq family.

    ## Why
    Every operator multiplies the scores by its scale anyway. One pass over the query fewer, and the projection stands
    right before the attention, where it can be joined with those of key and value.

    ## Before -> After
    ``FlashAttention<scale = s>(x * c, k, v)`` -> ``FlashAttention<scale = s * c>(x, k, v)``

    ## When it declines
    ``scale-not-positive``: not every operator takes a scale of 0 or below.

    ## Numerics
    ROUNDING: the scores are scaled instead of the query.

    ## References
    Vaswani et al., Attention Is All You Need, 2017, section 3.2.1.
    """

    code = "ATT115"
    name = "scaled-query"
    safety = Safety.ROUNDING
    anchors = frozenset({MHA, GQA, STANDARD, *OwnAttention.emits})
    emits = (MHA, GQA, STANDARD, *OwnAttention.emits)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        size = _head_size(node)
        if size is None or any(v is None for v in node.inputs[:3]):
            raise Declined("no-match", "query, key and value are not three tensors of known heads")
        for place, value in enumerate(node.inputs[:2]):
            found = None if value is None else times_scalar(value)
            if value is None or found is None or len(value.uses()) != 1 or value.is_graph_output():
                continue
            source, factor = found
            if source.dtype is not value.dtype or dims(source) != dims(value):
                continue
            scale = (float(attribute(node, "scale", 0.0)) or size**-0.5) * factor
            if not 0 < scale < math.inf:
                raise Declined("scale-not-positive", f"the factor {factor:g} makes the scale {scale:g}", at=node)
            return Facts(node, place, source, scale)
        raise Declined("no-match", "neither query nor key is multiplied by a number")

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node = facts.node
        inputs = [facts.source if n == facts.place else v for n, v in enumerate(node.inputs)]
        given = {a.name: a.value for a in node.attributes.values()} | {"scale": facts.scale}
        made = g.op(f"{node.domain}::{node.op_type}".removeprefix("::"), *inputs, outputs=len(node.outputs), **given)
        new = list(made) if len(node.outputs) > 1 else [made]
        for value, old in zip(new, node.outputs, strict=True):
            value.type, value.shape = old.type, old.shape
        g.keep_name(node)
        return Replacement(old=list(node.outputs), new=new)


def _head_size(node: ir.Node) -> int | None:
    """Elements of a query head, None where they are not known."""
    shape = dims(node.inputs[0])
    if shape is None or not isinstance(shape[-1], int):
        return None
    if len(shape) == 4:
        return shape[3]
    heads = int(attribute(node, "num_heads", 0) or attribute(node, "q_num_heads", 0))
    return shape[-1] // heads if len(shape) == 3 and heads and shape[-1] % heads == 0 else None


def _text(body: str, *, more: str = "", op: str = "com.microsoft.MultiHeadAttention <num_heads = 2>") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
g (float[B,S,16] x, float[B,S,16] k, float[B,S,16] v) => ({more}float[B,S,16] y)
<float c = {{0.25}}, float less = {{-1.0}}, float[1] four = {{4.0}}, float[B,S,16] q, float[B,S,16] kc> {{
{body.replace("ATTEND", op)}
}}"""


ScaledQuery.examples = (
    Example(text=_text("  q = Mul (x, c)\n  y = ATTEND (q, k, v)"), fires=1, emits={MHA: 1, "Mul": 0}),
    Example(
        text=_text(
            "  q = Mul (c, x)\n  kc = Div (k, four)\n  y = ATTEND (q, kc, v)",
            op="Attention <q_num_heads = 2, kv_num_heads = 2, scale = 0.5>",
        ),
        fires=2,
        emits={STANDARD: 1, "Mul": 0, "Div": 0},
    ),
    Example(text=_text("  q = Mul (x, less)\n  y = ATTEND (q, k, v)"), because="scale-not-positive"),
    Example(
        text=_text("  q = Mul (x, c)\n  z = Neg (q)\n  y = ATTEND (q, k, v)", more="float[B,S,16] z, "),
        because="no-match",
    ),
)
