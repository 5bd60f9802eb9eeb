"""ATT015: scores multiplied by a mask of ones and zeros, with a low number added where it is zero."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from ..graph import Builder, dims, producer
from ..masks.arithmetic import combine, negate
from ..masks.evaluate import evaluate
from ..masks.logic import Choice, Extreme, Number, Real
from ..masks.poly import ONE, ZERO, Poly, Unproven
from ..masks.tensor import Memo, broadcast
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .scores import leads_to_product

__all__ = ["MultipliedMask"]

#: Leaves that are no number of a mask: a place that keeps its score, and one of which nothing is known.
_KEPT, _UNPROVEN = Real(float("inf")), Real(float("-inf"))
_FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclass(frozen=True, slots=True)
class Facts:
    """The sum, the scores, the mask that is one where they stay, and the number that stands elsewhere."""

    node: ir.Node
    scores: ir.Value
    mask: ir.Value
    fill: float


class MultipliedMask(Rule):
    """Scores times a mask of ones and zeros, plus one number wherever the mask is zero.

    ## What it finds
    ``Add(Mul(s, m), t)`` or ``Sub(Mul(s, m), t)`` over the product of query and key, where ``m`` is proven to be 1 or
    0 everywhere (a triangle of ones, a boolean cast to float) and ``t`` to be 0 where ``m`` is 1 and one finite number
    where it is 0: ``w * b - 1e4 * (1 - b)``.

    ## Why
    The first GPT was written like this, and what was made after it. As a selection it is the mask that it means.

    ## Before -> After
    ``s * m + c * (1 - m)`` -> ``Where(m, s, c)``

    ## When it declines
    ``mask-not-proven`` when the mask may hold other numbers than 1 and 0, or what is added is not one number where
    it is 0 and nothing where it is 1.

    ## Numerics
    ROUNDING: exact for finite scores; an infinite score times 0 was NaN.

    ## References
    Radford et al., Improving Language Understanding by Generative Pre-Training, 2018 (its published code).
    """

    code = "ATT015"
    name = "multiplied-mask"
    safety = Safety.ROUNDING
    anchors = frozenset({"Add", "Sub"})
    emits = ("Where",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        pairs = [node.inputs[:2]] if node.op_type == "Sub" else [node.inputs[:2], node.inputs[1::-1]]
        for product, added in pairs:
            multiplied = producer(product, "Mul")
            if multiplied is None or added is None or dims(product) is None or dims(product) != dims(node.outputs[0]):
                continue
            for scores, mask in (multiplied.inputs[:2], multiplied.inputs[1::-1]):
                if scores is None or mask is None or mask.dtype not in _FLOATS:
                    continue
                if len(dims(mask) or ()) < 2 or leads_to_product(mask) or not leads_to_product(scores):
                    continue
                fill = _fill(mask, added, negative=node.op_type == "Sub")
                if fill is not None:
                    return Facts(node, scores, mask, fill)
                raise Declined(
                    "mask-not-proven", f"'{mask.name}' and what is added are not proven to be one mask", at=node
                )
        raise Declined("no-match", "no masked scores")

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        keeps = g.op("Cast", facts.mask, to=ir.DataType.BOOL, dtype=ir.DataType.BOOL, shape=facts.mask.shape)
        fill = g.scalar(facts.fill, like=facts.scores)
        return Replacement(old=[old], new=[g.op("Where", keeps, facts.scores, fill, dtype=old.dtype, shape=old.shape)])


def _fill(mask: ir.Value, added: ir.Value, *, negative: bool) -> float | None:
    """The number added where a mask is 0, when it is 1 and nothing is added everywhere else; None if unproven."""
    memo = Memo()
    pair = [evaluate(mask, memo), evaluate(added, memo)]
    if pair[0] is None or pair[1] is None:
        return None
    _, tensors = broadcast(memo, [pair[0], pair[1]])
    if tensors is None:
        return None
    more = tensors[1].number
    try:
        tree = combine(tensors[0].number, negate(more) if negative else more, _leaf)
    except Unproven:
        return None
    found = set(_leaves(tree)) - {_KEPT}
    number = found.pop() if len(found) == 1 else None
    return float(number.constant) if isinstance(number, Poly) and number.constant is not None else None


def _leaf(kept: Poly | Real | Extreme, more: Poly | Real | Extreme) -> Number:
    """What one place says: kept as it is, the number that takes its place, or that it is neither."""
    if kept == ONE and more == ZERO:
        return _KEPT
    return more if kept == ZERO and isinstance(more, Poly) and more.constant is not None else _UNPROVEN


def _leaves(number: Number) -> Iterator[Number]:
    if isinstance(number, Choice):
        yield from _leaves(number.then)
        yield from _leaves(number.otherwise)
    else:
        yield number


def _text(body: str, mask: str = "bool[S,T] b") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,8] q, float[B,4,8,T] k, {mask}) => (float[B,4,S,T] y) <float one = {{1}}, float low = {{-10000}}> {{
{body}
}}"""


_SCORES = "  s = MatMul (q, k)\n  m = Cast <to = 1> (b)\n  w = Mul (s, m)\n  n = Sub (one, m)\n  t = Mul (n, low)\n"
MultipliedMask.examples = (
    Example(text=_text(_SCORES + "  y = Add (w, t)"), fires=1, emits={"Where": 1, "Mul": 0}),
    Example(
        text=_text(
            "  s = MatMul (q, k)\n  m = Cast <to = 1> (b)\n  w = Mul (m, s)\n  i = Not (b)\n  n = Cast <to = 1> (i)\n"
            "  h = Neg (low)\n  t = Mul (h, n)\n  y = Sub (w, t)"
        ),
        fires=1,
        emits={"Where": 1, "Mul": 0},
    ),
    Example(
        text=_text(_SCORES.replace("Cast <to = 1>", "Identity") + "  y = Add (w, t)", "float[S,T] b"),
        because="mask-not-proven",
    ),
    Example(
        text=_text(_SCORES.replace("Sub (one, m)", "Add (one, m)") + "  y = Add (w, t)"), because="mask-not-proven"
    ),
)
