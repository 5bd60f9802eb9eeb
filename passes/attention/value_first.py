"""ATT005: attention weights that stand on the right of their value."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .scores import swaps_last
from .weights import comes_from_softmax

__all__ = ["ValueFirst"]

_HANDS_ON = frozenset({"Cast", "Identity", "Dropout", "Reshape", "Unsqueeze", "Squeeze", "Where", "Transpose"})


@dataclass(frozen=True, slots=True)
class Facts:
    """The product, its value and its weights, both turned round."""

    node: ir.Node
    value: ir.Value
    weights: ir.Value


class ValueFirst(Rule):
    """The product of a value and its weights, in that order.

    ## What it finds
    MatMul whose right operand is a softmax, transposed: attention over channels-first tensors, as diffusion
    models and non-local blocks write it.

    ## Why
    Recognition reads weights times value. The transposes meet those that made the tensors channels-first.

    ## Before -> After
    ``MatMul(v, Transpose(w))`` -> ``Transpose(MatMul(w, Transpose(v)))``

    ## When it declines
    ``unknown-rank`` when the rank of an operand is not known.

    ## Numerics
    ROUNDING (the sum runs over the same numbers).

    ## References
    Wang et al., Non-local Neural Networks, 2018.
    """

    code = "ATT005"
    name = "value-first"
    safety = Safety.ROUNDING
    anchors = frozenset({"MatMul"})
    emits = ("MatMul",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        left, right = node.inputs
        turned = producer(right, "Transpose")
        if left is None or turned is None or not swaps_last(turned):
            raise Declined("no-match", "no weights on the right")
        if not comes_from_softmax(turned.inputs[0], _HANDS_ON):
            raise Declined("no-match", "no weights on the right")
        if left.producer() is None and left.const_value is not None:
            raise Declined("no-match", "the value is a weight")
        if dims(left) is None or len(dims(left) or ()) < 2:
            raise Declined("unknown-rank", f"the rank of '{left.name}' is not known", at=node)
        assert turned.inputs[0] is not None
        return Facts(node, left, turned.inputs[0])

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        value = _turned(g, facts.value)
        shape = None if old.shape is None else [*list(old.shape)[:-2], old.shape[-1], old.shape[-2]]
        product = g.op("MatMul", facts.weights, value, dtype=old.dtype, shape=shape)
        return Replacement(old=[old], new=[_turned(g, product)])


def _turned(g: Builder, value: ir.Value) -> ir.Value:
    rank = len(dims(value) or ())
    shape = None if value.shape is None else list(value.shape)
    after = None if shape is None else [*shape[:-2], shape[-1], shape[-2]]
    return g.op("Transpose", value, perm=[*range(rank - 2), rank - 1, rank - 2], dtype=value.dtype, shape=after)


def _text(body: str, right: str = "float[B,S,T] s") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,16,T] v, {right}) => (float[B,16,S] y) {{
{body}
}}"""


ValueFirst.examples = (
    Example(
        text=_text("  p = Softmax <axis = -1> (s)\n  t = Transpose <perm = [0, 2, 1]> (p)\n  y = MatMul (v, t)"),
        fires=1,
        emits={"MatMul": 1},
    ),
    Example(
        text=_text(
            "  p = Softmax <axis = -1> (s)\n  c = Cast <to = 1> (p)\n  t = Transpose <perm = [0, 2, 1]> (c)\n"
            "  y = MatMul (v, t)"
        ),
        fires=1,
        emits={"MatMul": 1},
    ),
    Example(text=_text("  t = Transpose <perm = [0, 2, 1]> (s)\n  y = MatMul (v, t)"), because="no-match"),
    Example(
        text=_text("  p = Softmax <axis = -1> (s)\n  y = MatMul (v, p)", "float[B,T,S] s"),
        because="no-match",
    ),
)
