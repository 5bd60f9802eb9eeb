"""ATT017: a matrix product that onnxruntime's optimizer fused with its scale and its transpose."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, dims, op_name
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .between import is_learned

__all__ = ["FusedMatMul"]

_NAME = "com.microsoft::FusedMatMul"


@dataclass(frozen=True, slots=True)
class Facts:
    """The product, its operands, which of them is transposed, and its factor."""

    node: ir.Node
    operands: tuple[ir.Value, ir.Value]
    turned: tuple[bool, bool]
    alpha: float


class FusedMatMul(Rule):
    """com.microsoft::FusedMatMul of two computed tensors.

    ## What it finds
    The product of query and key, or of weights and value, in a graph that onnxruntime's optimizer has written.

    ## Why
    Attention is recognised between matrix products; what is left as it is onnxruntime fuses again when it loads.

    ## Before -> After
    ``FusedMatMul(a, b, alpha, transB=1)`` -> ``Mul(MatMul(a, Transpose(b)), alpha)``

    ## When it declines
    ``product-form`` when axes of the batch are transposed, or the rank of an operand is not known.

    ## Numerics
    ROUNDING: the factor is applied to the product instead of inside it.

    ## References
    onnxruntime contrib operators, com.microsoft.FusedMatMul.
    """

    code = "ATT017"
    name = "fused-matmul"
    safety = Safety.ROUNDING
    anchors = frozenset({_NAME})
    emits = ("MatMul",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        if op_name(node) != _NAME:
            raise Declined("no-match", "another product")
        left, right = node.inputs[:2]
        if left is None or right is None or is_learned(left) or is_learned(right):
            raise Declined("no-match", "a linear layer")
        batches = attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0)
        if batches or any(len(dims(v) or ()) < 2 for v in (left, right)):
            raise Declined("product-form", "axes of the batch are transposed, or ranks are not known", at=node)
        turned = bool(attribute(node, "transA", 0)), bool(attribute(node, "transB", 0))
        return Facts(node, (left, right), turned, float(attribute(node, "alpha", 1.0)))

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        operands = [_turned(g, v) if turn else v for v, turn in zip(facts.operands, facts.turned, strict=True)]
        made = g.op("MatMul", *operands, dtype=old.dtype, shape=old.shape)
        if facts.alpha != 1.0:
            made = g.op("Mul", made, g.scalar(facts.alpha, like=old), dtype=old.dtype, shape=old.shape)
        return Replacement(old=[old], new=[made], twin=True)


def _turned(g: Builder, value: ir.Value) -> ir.Value:
    assert value.shape is not None
    *lead, rows, last = value.shape
    perm = [*range(len(lead)), len(lead) + 1, len(lead)]
    return g.op("Transpose", value, perm=perm, dtype=value.dtype, shape=[*lead, last, rows])


def _text(inputs: str, attributes: str, *, output: str = "float[B,4,S,T] y", held: str = "") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g ({inputs}) => ({output}) {held} {{
  y = com.microsoft.FusedMatMul <{attributes}> (q, k)
}}"""


_QUERY, _KEY = "float[B,4,S,8] q", "float[B,4,T,8] k"
FusedMatMul.examples = (
    Example(text=_text(f"{_QUERY}, {_KEY}", "alpha = 0.25, transB = 1"), fires=1, emits={"MatMul": 1, "Mul": 1}),
    Example(text=_text("float[B,4,8,S] q, float[B,4,8,T] k", "transA = 1"), fires=1, emits={"Transpose": 1, "Mul": 0}),
    Example(text=_text("float[4,B,S,8] q, float[B,4,8,T] k", "transBatchA = 1"), because="product-form"),
    Example(
        text=_text(_QUERY, "alpha = 0.25", output="float[B,4,S,1] y", held="<float[8,1] k = {1, 2, 3, 4, 5, 6, 7, 8}>"),
        because="no-match",
    ),
)
