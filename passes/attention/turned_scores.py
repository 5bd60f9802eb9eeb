"""ATT013: scores that are turned before their softmax are the product of the turned operands."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import Builder, attribute, dims, op_name, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .scores import swaps_last
from .softmax_axis import ELEMENTWISE, in_order, swap

__all__ = ["TurnedScores"]

#: Element-wise operators looked through on either side: factors, cap, biases and masks are few.
_MOST = 16


class TurnedScores(Rule):
    """Scores of two attentions that look at each other, computed once and read both ways.

    ## What it finds
    A Transpose of the last two axes between a product and a softmax over the last axis, with element-wise operators on
    either side: what was the query of the product is the key of this softmax.

    ## Why
    Recognition reads ``q @ k^T`` right above a softmax. Attention that goes both ways over one product of scores is two
    attentions, and a fused operator computes its scores anyway.

    ## Before -> After
    ``Softmax(Transpose(f(MatMul(a, b))))`` -> ``Softmax(f'(MatMul(b^T, a^T)))``

    ## When it declines
    ``no-match`` where no product of as many axes is above, or no softmax below.

    ## Numerics
    ROUNDING: the same sums, maybe in another order.

    ## References
    Koner et al., LookupViT: Compressing visual information to a limited number of tokens, 2024 (scores read both ways).
    """

    code = "ATT013"
    name = "turned-scores"
    safety = Safety.ROUNDING
    anchors = frozenset({"Transpose"})
    emits = ("MatMul",)

    def examine(self, node: ir.Node, context: Context) -> ir.Node:
        source = node.inputs[0]
        if source is None or not swaps_last(node) or not _from_product(source, _MOST):
            raise Declined("no-match", "no scores are turned")
        if not _to_softmax(node.outputs[0], _MOST):
            raise Declined("no-match", "no softmax reads them")
        return node

    def build(self, node: ir.Node, g: Builder) -> Replacement:
        source, old = node.inputs[0], node.outputs[0]
        assert source is not None
        return Replacement(old=[old], new=[in_order(g, source, swap(len(dims(old) or ())), _MOST)])


def _from_product(value: ir.Value, steps: int) -> bool:
    """Whether a product of two tensors with as many axes is reached over element-wise operators."""
    product = producer(value, "MatMul")
    rank = len(dims(value) or ())
    if product is not None:
        return rank > 2 and all(len(dims(v) or ()) == rank and v.const_value is None for v in product.inputs if v)
    node = producer(value, *ELEMENTWISE) if steps else None
    if node is None or len(dims(node.outputs[0]) or ()) != rank:
        return False
    above = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return any(v is not None and _from_product(v, steps - 1) for v in above)


def _to_softmax(value: ir.Value, steps: int) -> bool:
    """Whether a softmax over the last axis is reached over element-wise operators."""
    rank = len(dims(value) or ())
    for node in {id(u.node): u.node for u in value.uses()}.values():
        if op_name(node) == "Softmax":
            if attribute(node, "axis", -1) in (-1, rank - 1):
                return True
        elif steps and op_name(node) in ELEMENTWISE and _to_softmax(node.outputs[0], steps - 1):
            return True
    return False


def _text(softmax: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,16] a, float[B,4,16,T] b) => (float[B,4,T,S] y)
<float scale = {{0.25}}, float[B,4,S,T] s, float[B,4,S,T] x, float[B,4,T,S] t> {{
  s = MatMul (a, b)
  x = Mul (s, scale)
  t = Transpose <perm = [0, 1, 3, 2]> (x)
  {softmax}
}}"""


TurnedScores.examples = (
    Example(text=_text("y = Softmax <axis = -1> (t)"), fires=1, emits={"MatMul": 1}),
    Example(text=_text("c = Tanh (t)\n  y = Softmax <axis = 3> (c)"), fires=1, emits={"MatMul": 1}),
    Example(text=_text("y = Softmax <axis = 2> (t)"), because="no-match"),
    Example(text=_text("y = Tanh (t)"), because="no-match"),
)
