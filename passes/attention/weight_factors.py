"""ATT007: a factor on attention weights that is one for each row is taken to the result."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .weights import comes_from_softmax

__all__ = ["WeightFactor"]

_HANDS_ON = frozenset({"Cast", "Identity", "Dropout", "Where"})


@dataclass(frozen=True, slots=True)
class Facts:
    """The product, its weights below the factor, the factor, the value, and the operator ("Mul" or "Div")."""

    node: ir.Node
    weights: ir.Value
    factor: ir.Value
    value: ir.Value
    op: str


class WeightFactor(Rule):
    """Weights times one number a row, times the value.

    ## What it finds
    MatMul of a softmax that is multiplied or divided by a tensor whose last axis is 1 (a gain of each head), with
    the value.

    ## Why
    ``(g * p) @ v`` is ``g * (p @ v)``: without the factor the weights are a softmax.

    ## Before -> After
    ``MatMul(Mul(p, g), v)`` -> ``Mul(MatMul(p, v), g)``

    ## When it declines
    ``no-match`` when the factor differs from key to key.

    ## Numerics
    ROUNDING.

    ## References
    Shleifer et al., NormFormer, 2021.
    """

    code = "ATT007"
    name = "weight-factor"
    safety = Safety.ROUNDING
    anchors = frozenset({"MatMul"})
    emits = ("MatMul",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        scaled = producer(node.inputs[0], "Mul", "Div")
        value = node.inputs[1]
        if scaled is None or value is None:
            raise Declined("no-match", "no factor on the left")
        left, right = scaled.inputs
        pairs = [(left, right)] if scaled.op_type == "Div" else [(left, right), (right, left)]
        for weights, factor in pairs:
            if weights is None or factor is None or not _one_column(factor, weights):
                continue
            if comes_from_softmax(weights, _HANDS_ON):
                return Facts(node, weights, factor, value, scaled.op_type)
        raise Declined("no-match", "the factor is not one number a row of attention weights")

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        product = g.op("MatMul", facts.weights, facts.value, dtype=old.dtype, shape=old.shape)
        return Replacement(old=[old], new=[g.op(facts.op, product, facts.factor, dtype=old.dtype, shape=old.shape)])


def _one_column(factor: ir.Value, beside: ir.Value) -> bool:
    shape, rows = dims(factor), dims(beside)
    return shape is not None and rows is not None and len(shape) <= len(rows) and (not shape or shape[-1] == 1)


def _text(body: str, factor: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,T] s, {factor}, float[B,4,T,8] v) => (float[B,4,S,8] y) {{
{body}
}}"""


_BODY = "  p = Softmax <axis = -1> (s)\n  w = Mul (p, g)\n  y = MatMul (w, v)"
WeightFactor.examples = (
    Example(text=_text(_BODY, "float[4,1,1] g"), fires=1, emits={"MatMul": 1}),
    Example(text=_text(_BODY.replace("(p, g)", "(g, p)"), "float[B,4,S,1] g"), fires=1, emits={"MatMul": 1}),
    Example(text=_text(_BODY, "float[B,1,1,T] g"), because="no-match"),
    Example(text=_text(_BODY.replace("Softmax <axis = -1>", "Sigmoid"), "float[4,1,1] g"), because="no-match"),
)
