"""What the two bias rules share: a GELU of either form, the vector added before it, and the operator for both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..graph import Builder, attribute, op_name, producer
from ..look import no_match, past_identity, require, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule
from ..symbols import same_dim

__all__ = ["BiasThenGelu", "BiasedGelu"]


@dataclass(frozen=True, slots=True)
class BiasedGelu:
    """gelu(x + bias): what goes in and the value that comes out."""

    x: ir.Value
    bias: ir.Value
    output: ir.Value
    dtype: ir.DataType


class BiasThenGelu(Rule):
    """A rule that joins a bias and one form of GELU.

    Attributes:
        form: "none" for the erf form, "tanh" for the other.
        op: Operator of com.microsoft that computes this form of a sum.
    """

    form: ClassVar[str]
    op: ClassVar[str]

    def examine(self, node: ir.Node, context: Context) -> BiasedGelu:
        """Read gelu(x + bias) of this rule's form."""
        if _approximation(node) != self.form:
            raise no_match("the other form")
        return _biased_gelu(node, context, self.op)

    def build(self, facts: BiasedGelu, g: Builder) -> Replacement:
        """One node that takes the bias."""
        gelu = g.op(f"com.microsoft::{self.op}", facts.x, facts.bias, dtype=facts.dtype, shape=facts.x.shape)
        return Replacement(old=[facts.output], new=[gelu])


def _approximation(node: ir.Node) -> str:
    """ "none" for the erf form, "tanh" for the other, whichever operator says it."""
    if op_name(node) == "com.microsoft::FastGelu":
        return "tanh"
    found = attribute(node, "approximate", "none")
    return found.decode() if isinstance(found, bytes) else str(found)


def _biased_gelu(node: ir.Node, context: Context, op: str) -> BiasedGelu:
    """Read gelu(x + bias).

    Raises:
        Declined: "sum-read-elsewhere", "bias-shape", "dtype", or "no-match".
    """
    if context.target.portable:
        raise no_match("no standard operator does this")
    if node.inputs[0] is None or len([v for v in node.inputs if v is not None]) != 1:
        raise no_match("has its bias")
    total = past_identity(node.inputs[0])
    add = producer(total, "Add")
    if add is None:
        raise no_match()
    for x, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        if x is None or bias is None or bias.shape is None or len(bias.shape) != 1 or x.shape is None:
            continue
        if not len(x.shape) or bias.const_value is None or not same_dim(bias.shape[0], x.shape[-1]):
            raise Declined("bias-shape", f"expected one constant a feature, found shape {bias.shape}", at=add)
        if not unused_elsewhere(total, node):
            raise Declined("sum-read-elsewhere", "the sum with the bias is read elsewhere", at=add)
        return BiasedGelu(x, bias, node.outputs[0], require(x.dtype, op, context.target, node))
    raise no_match("a residual, no bias")
