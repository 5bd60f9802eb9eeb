"""ATT007: what acts on whole rows of attention weights, a factor or a blank, is taken to the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from ..graph import Builder, attribute, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .conditions import literals
from .scores import filling
from .weights import comes_from_softmax, guards_rows

__all__ = ["WeightFactor"]

_HANDS_ON = frozenset({"Cast", "Identity", "Dropout", "Where"})


@dataclass(frozen=True, slots=True)
class Facts:
    """What acts on rows of weights, and on what.

    Attributes:
        node: The product with the value.
        weights: The weights above what acts on their rows.
        value: What they weigh.
        acts: The Mul, Div or Where on them.
        place: Which of its inputs they are.
        logits: What the softmax is of where its own rows were filled under the same condition: it need not be.
    """

    node: ir.Node
    weights: ir.Value
    value: ir.Value
    acts: ir.Node
    place: int
    logits: ir.Value | None = None


class WeightFactor(Rule):
    """Weights whose rows are scaled or set to zero as a whole, times the value.

    ## What it finds
    MatMul of a softmax with the value, where the softmax is multiplied or divided by a tensor whose last axis is 1 (a
    gain of each head), or set to 0 under a condition whose last axis is 1 (queries that are padding, rows that the
    mask leaves no key). A softmax whose scores are filled under that same condition, so that it has no NaN there,
    is taken of the scores themselves.

    ## Why
    ``(g * p) @ v`` is ``g * (p @ v)``: without what acts on rows the weights are a softmax.

    ## Before -> After
    ``MatMul(Mul(p, g), v)`` -> ``Mul(MatMul(p, v), g)``
    ``MatMul(Where(c, 0, p), v)`` -> ``Where(c, 0, MatMul(p, v))``

    ## When it declines
    ``no-match`` when the factor or condition differs from key to key.

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
        acts, value = producer(node.inputs[0], "Mul", "Div", "Where"), node.inputs[1]
        if acts is None or value is None:
            raise Declined("no-match", "nothing acts on the left operand")
        for place, row in _ROW[acts.op_type]:
            weights, by_row = acts.inputs[place], acts.inputs[row]
            if weights is None or by_row is None or not _one_column(by_row, weights):
                continue
            if not comes_from_softmax(weights, _HANDS_ON) or not _plain(acts, weights, place):
                continue
            logits = _unfilled(weights, by_row, place == 1) if acts.op_type == "Where" else None
            return Facts(node, weights, value, acts, place, logits)
        raise Declined("no-match", "nothing acts on whole rows of attention weights")

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old, weights = facts.node.outputs[0], facts.weights
        if facts.logits is not None:
            weights = g.op("Softmax", facts.logits, axis=-1, dtype=weights.dtype, shape=weights.shape)
        product = g.op("MatMul", weights, facts.value, dtype=old.dtype, shape=old.shape)
        inputs = [product if n == facts.place else v for n, v in enumerate(facts.acts.inputs)]
        if facts.acts.op_type == "Where":
            inputs[3 - facts.place] = g.scalar(0.0, like=old)
        return Replacement(old=[old], new=[g.op(facts.acts.op_type, *inputs, dtype=old.dtype, shape=old.shape)])


#: Where the weights stand among the inputs of what acts on them, and where what says how it acts on a row.
_ROW: Final = {"Div": ((0, 1),), "Mul": ((0, 1), (1, 0)), "Where": ((1, 0), (2, 0))}


def _plain(acts: ir.Node, weights: ir.Value, place: int) -> bool:
    """Whether a Where sets weights to 0 and is no guard against NaN, which stays beside its softmax."""
    if acts.op_type != "Where":
        return True
    return filling(acts.inputs[3 - place]) == 0 and not guards_rows(acts, weights)


def _unfilled(weights: ir.Value, condition: ir.Value, keeps: bool) -> ir.Value | None:
    """The scores of a softmax before rows that are blanked below it were filled; None where they were not."""
    softmax = producer(weights, "Softmax")
    filled = None if softmax is None else producer(softmax.inputs[0], "Where")
    if softmax is None or filled is None or attribute(softmax, "axis", -1) not in (-1, len(dims(weights) or ()) - 1):
        return None
    asked, yes, no = filled.inputs
    if asked is None or yes is None or no is None:
        return None
    for scores, fill, kept in ((yes, no, True), (no, yes, False)):
        same = literals(asked, kept) == literals(condition, keeps)
        if same and filling(fill) is not None and dims(scores) == dims(weights):
            return scores
    return None


def _one_column(factor: ir.Value, beside: ir.Value) -> bool:
    shape, rows = dims(factor), dims(beside)
    return shape is not None and rows is not None and len(shape) <= len(rows) and (not shape or shape[-1] == 1)


def _text(body: str, factor: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,T] s, {factor}, float[B,4,T,8] v) => (float[B,4,S,8] y) {{
{body}
}}"""


_BODY = "  p = Softmax <axis = -1> (s)\n  w = Mul (p, g)\n  y = MatMul (w, v)"
_ZERO = "  z = Constant <value_float = 0.0> ()\n"
_BLANK = _ZERO + "  p = Softmax <axis = -1> (s)\n  w = Where (c, z, p)\n  y = MatMul (w, v)"
_TWICE = _BLANK.replace("(s)", "(f)").replace("  p =", "  f = Where (c, z, s)\n  p =")
WeightFactor.examples = (
    Example(text=_text(_BODY, "float[4,1,1] g"), fires=1, emits={"MatMul": 1}),
    Example(text=_text(_BODY.replace("(p, g)", "(g, p)"), "float[B,4,S,1] g"), fires=1, emits={"MatMul": 1}),
    Example(text=_text(_BLANK, "bool[B,1,S,1] c"), fires=1, emits={"MatMul": 1, "Where": 1}),
    Example(text=_text(_TWICE, "bool[B,1,S,1] c"), fires=1, emits={"MatMul": 1, "Where": 1}),
    Example(text=_text(_BODY, "float[B,1,1,T] g"), because="no-match"),
    Example(text=_text(_BLANK, "bool[B,1,1,T] c"), because="no-match"),
    Example(text=_text(_BODY.replace("Softmax <axis = -1>", "Sigmoid"), "float[4,1,1] g"), because="no-match"),
)
