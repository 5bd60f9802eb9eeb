"""ATT006: a replacement of infinite attention weights: there are none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, op_name, producer, scalar
from ..layout.target import pass_through
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["InfiniteWeights"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The selection and the arm that is always taken."""

    node: ir.Node
    kept: ir.Value


class InfiniteWeights(Rule):
    """Weights of a softmax where they are infinite replaced by something else.

    ## What it finds
    Where whose condition holds only where a softmax is infinite: what ``torch.nan_to_num`` adds to its guard
    against NaN.

    ## Why
    A softmax lies between 0 and 1, or is NaN. Without the dead branches the guard against NaN is seen.

    ## Before -> After
    ``Where(And(Less(p, 0), IsInf(p)), c, x)`` -> ``x``

    ## When it declines
    ``graph-output`` when an input of the graph would become an output.

    ## Numerics
    EXACT.

    ## References
    ONNX operators, IsInf-20.
    """

    code = "ATT006"
    name = "infinite-weights"
    safety = Safety.EXACT
    anchors = frozenset({"Where"})
    emits = ()

    def examine(self, node: ir.Node, context: Context) -> Facts:
        condition, _, kept = node.inputs
        if kept is None or not _asks_for_infinity(condition):
            raise Declined("no-match", "the condition may hold")
        pass_through(node.outputs[0], kept)
        return Facts(node, kept)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        return pass_through(facts.node.outputs[0], facts.kept)


def _asks_for_infinity(condition: ir.Value | None) -> bool:
    node = producer(condition, "IsInf", "And", "Equal")
    if node is None:
        return False
    if op_name(node) == "And":
        return any(_asks_for_infinity(v) for v in node.inputs)
    if op_name(node) == "Equal":
        numbers = [scalar(v) for v in node.inputs]
        return any(n is not None and np.isinf(n) for n in numbers) and any(_is_softmax(v) for v in node.inputs)
    return _is_softmax(node.inputs[0])


def _is_softmax(value: ir.Value | None) -> bool:
    node = producer(value, "Softmax", "Cast", "Identity")
    while node is not None and op_name(node) != "Softmax":
        node = producer(node.inputs[0], "Softmax", "Cast", "Identity")
    return node is not None


def _text(body: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,S,T] s) => (float[B,S,T] y)
<float zero = {{0}}, float low = {{-1}}> {{
{body}
}}"""


InfiniteWeights.examples = (
    Example(
        text=_text(
            "  p = Softmax <axis = -1> (s)\n  i = IsInf (p)\n  l = Less (p, zero)\n  c = And (l, i)\n"
            "  w = Where (c, low, p)\n  y = Neg (w)"
        ),
        fires=1,
        emits={"Where": 0},
    ),
    Example(
        text=_text("  p = Softmax <axis = -1> (s)\n  i = IsInf (p)\n  w = Where (i, low, p)\n  y = Neg (w)"),
        fires=1,
        emits={"Where": 0},
    ),
    Example(
        text=_text("  p = Softmax <axis = -1> (s)\n  i = IsNaN (p)\n  w = Where (i, low, p)\n  y = Neg (w)"),
        because="no-match",
    ),
    Example(text=_text("  i = IsInf (s)\n  w = Where (i, low, s)\n  y = Neg (w)"), because="no-match"),
)
