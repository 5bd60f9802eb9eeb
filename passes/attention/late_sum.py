"""ATT008: exponentials that are divided by their sum after the product with the value."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, dims, producer
from ..look import axes_of
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["LateSum"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The division, the exponentials, their sum, and the value."""

    node: ir.Node
    powers: ir.Value
    total: ir.Value
    value: ir.Value


class LateSum(Rule):
    """Attention that normalises its result instead of its weights.

    ## What it finds
    Div of a MatMul of exponentials and a value by the sum of the same exponentials over the last axis (keepdims).

    ## Why
    ``(e @ v) / sum(e)`` is ``(e / sum(e)) @ v``, and that is a softmax times a value.

    ## Before -> After
    ``Div(MatMul(e, v), ReduceSum(e))`` -> ``MatMul(Div(e, ReduceSum(e)), v)``

    ## When it declines
    ``softmax-axis`` when the sum is not over the last axis alone.

    ## Numerics
    ROUNDING.

    ## References
    Dao et al., FlashAttention, 2022, section 3.1.
    """

    code = "ATT008"
    name = "late-sum"
    safety = Safety.ROUNDING
    anchors = frozenset({"Div"})
    emits = ("MatMul",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        product, total = producer(node.inputs[0], "MatMul"), producer(node.inputs[1], "ReduceSum")
        powers = None if product is None else product.inputs[0]
        if product is None or total is None or producer(powers, "Exp") is None or total.inputs[0] is not powers:
            raise Declined("no-match", "no exponentials over their sum")
        rank, axes = len(dims(powers) or ()), axes_of(total)
        if axes not in ((-1,), (rank - 1,)) or attribute(total, "keepdims", 1) != 1:
            raise Declined("softmax-axis", "the sum is not over the last axis alone", at=total)
        value = product.inputs[1]
        assert powers is not None and value is not None
        return Facts(node, powers, total.outputs[0], value)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old, powers = facts.node.outputs[0], facts.powers
        weights = g.op("Div", powers, facts.total, dtype=powers.dtype, shape=powers.shape)
        return Replacement(old=[old], new=[g.op("MatMul", weights, facts.value, dtype=old.dtype, shape=old.shape)])


def _text(body: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,T] x, float[B,4,T,8] v) => (float[B,4,S,8] y) <int64[1] ax = {{-1}}, int64[1] ax0 = {{2}}> {{
{body}
}}"""


_BODY = "  e = Exp (x)\n  p = MatMul (e, v)\n  s = ReduceSum <keepdims = 1> (e, ax)\n  y = Div (p, s)"
LateSum.examples = (
    Example(text=_text(_BODY), fires=1, emits={"MatMul": 1}),
    Example(
        text=_text("  m = ReduceMax <keepdims = 1> (x, ax)\n  d = Sub (x, m)\n" + _BODY.replace("Exp (x)", "Exp (d)")),
        fires=1,
        emits={"MatMul": 1},
    ),
    Example(text=_text(_BODY.replace("(e, ax)", "(p, ax)")), because="no-match"),
    Example(text=_text(_BODY.replace("Exp (x)", "Sigmoid (x)")), because="no-match"),
)
