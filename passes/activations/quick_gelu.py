"""ACT005: x times a sigmoid of a multiple of x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, op_name
from ..look import consumers, no_match, past_identity, require, times_scalar
from ..rule import Context, Declined, Replacement, Rule

__all__ = ["QuickGelu"]


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    alpha: float
    output: ir.Value
    dtype: ir.DataType


class QuickGelu(Rule):
    """x times the sigmoid of a multiple of x: SiLU (Swish) and CLIP's quick GELU.

    ## What it finds
    ``x * sigmoid(alpha * x)``, operands in either order; without a constant alpha is 1, which is SiLU.

    ## Why
    One pass over the tensor instead of two or three.

    ## Before -> After
    ``Sigmoid, Mul`` -> ``com.microsoft::QuickGelu(alpha=1)``.

    ## When it declines
    * ``alpha``: the factor is not positive and finite.
    * ``sigmoid-read-elsewhere``: something else needs the gate.
    * ``dtype``: the target has no kernel for the element type.

    ## Numerics
    ROUNDING: the same function; the kernel's logistic is the one of the Sigmoid operator.

    ## References
    Ramachandran, Zoph and Le, Searching for Activation Functions, 2017. onnxruntime contrib operator QuickGelu.
    """

    code: ClassVar[str] = "ACT005"
    name: ClassVar[str] = "quick-gelu"
    anchors: ClassVar[frozenset[str]] = frozenset({"Sigmoid"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::QuickGelu",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`QuickGelu`."""
        if context.target.portable or node.inputs[0] is None:
            raise no_match("no standard operator does this")
        inner = past_identity(node.inputs[0])
        scaled = times_scalar(inner)
        candidates = [(inner, 1.0), *([scaled] if scaled is not None else [])]
        for reader in consumers(node.outputs[0]):
            for x, alpha in candidates:
                if op_name(reader) == "Mul" and _is_product(reader, x, node.outputs[0]):
                    return self._checked(x, alpha, reader, node, context)
        raise no_match()

    def _checked(self, x: ir.Value, alpha: float, product: ir.Node, node: ir.Node, context: Context) -> _Facts:
        if not 0 < alpha < float("inf"):
            raise Declined("alpha", f"expected a positive factor, found {alpha:.5g}", at=node)
        if node.outputs[0].is_graph_output() or any(n is not product for n in consumers(node.outputs[0])):
            raise Declined("sigmoid-read-elsewhere", "the gate is read elsewhere", at=node)
        return _Facts(x, alpha, product.outputs[0], require(x.dtype, "QuickGelu", context.target, node))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`QuickGelu`."""
        gelu = g.op("com.microsoft::QuickGelu", facts.x, alpha=facts.alpha, dtype=facts.dtype, shape=facts.x.shape)
        return Replacement(old=[facts.output], new=[gelu])


def _is_product(node: ir.Node, x: ir.Value, gate: ir.Value) -> bool:
    left, right = (past_identity(v) if v is not None else None for v in node.inputs)
    return (left is x and right is gate) or (left is gate and right is x)


QuickGelu.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "s = Sigmoid (x) y = Mul (x, s)",
        emits={"com.microsoft::QuickGelu": 1},
    ),
    fires(
        "float[3,8] x",
        "float[3,8] y",
        "a = Mul (x, alpha) s = Sigmoid (a) y = Mul (s, x)",
        emits={"com.microsoft::QuickGelu": 1},
        constants="float alpha = {1.702}",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y, float[B,S,8] s",
        "s = Sigmoid (x) y = Mul (x, s)",
        because="sigmoid-read-elsewhere",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "a = Mul (x, alpha) s = Sigmoid (a) y = Mul (s, x)",
        because="alpha",
        constants="float alpha = {-1}",
    ),
)
