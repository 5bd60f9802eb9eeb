"""LAY008: a Gemm between a flattening of the leading axes and its undoing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..graph import Builder, attribute, producer
from ..look import no_match, sole_reader
from ..rule import Context, Declined, Example, Replacement, Rule
from ..symbols import same_dim
from .target import shape_text

__all__ = ["FlattenedGemm"]


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    output: ir.Value
    transposed: bool


class FlattenedGemm(Rule):
    """A Gemm between a flattening of the leading axes and its undoing.

    ## What it finds
    ``Reshape(Gemm(Reshape(x, (-1, K)), weight, bias), (B, S, M))`` where B and S are the leading axes of x:
    what ``addmm`` on flattened tensors (GPT-2's Conv1D) exports to.

    ## Why
    ``MatMul`` takes leading axes as they are. The bias becomes an ``Add`` that activation and skip rules take
    in, and the target shape need not be computed.

    ## Before -> After
    ``Reshape, Gemm, Reshape`` -> ``MatMul, Add``.

    ## When it declines
    * ``shape-not-proven``: the leading axes after are not provably those before.
    * ``gemm-form``: alpha or beta is not 1, the first operand is transposed, or the bias is no vector.

    ## Numerics
    ROUNDING: the bias is added after the product instead of being its starting value.

    ## References
    ONNX operators Gemm-13 and MatMul-13.
    """

    code: ClassVar[str] = "LAY008"
    name: ClassVar[str] = "flattened-gemm"
    anchors: ClassVar[frozenset[str]] = frozenset({"Gemm"})
    emits: ClassVar[tuple[str, ...]] = ("MatMul", "Add")
    examples: ClassVar[tuple[Example, ...]] = ()

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`FlattenedGemm`."""
        flatten = producer(node.inputs[0], "Reshape")
        back = sole_reader(node.outputs[0], "Reshape")
        x = None if flatten is None else flatten.inputs[0]
        weight = node.inputs[1]
        if flatten is None or back is None or x is None or weight is None:
            raise no_match()
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        _check_form(node, bias)
        before, flat, after = x.shape, flatten.outputs[0].shape, back.outputs[0].shape
        known = before is not None and flat is not None and after is not None and len(before) == len(after)
        leading = known and all(same_dim(a, b) for a, b in zip(list(before)[:-1], list(after)[:-1], strict=True))
        width = known and same_dim(before[-1], flat[-1])
        if not leading or not width:
            detail = f"{shape_text(x)} and {shape_text(back.outputs[0])} do not provably share their leading axes"
            raise Declined("shape-not-proven", detail, at=node)
        return _Facts(x, weight, bias, back.outputs[0], bool(attribute(node, "transB", 0)))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`FlattenedGemm`."""
        weight = facts.weight
        if facts.transposed:
            rows, columns = weight.shape if weight.shape is not None else (None, None)
            weight = g.op("Transpose", weight, perm=[1, 0], shape=[columns, rows])
        product = g.op("MatMul", facts.x, weight, dtype=facts.x.dtype, shape=facts.output.shape)
        if facts.bias is not None:
            product = g.op("Add", product, facts.bias, dtype=facts.x.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[product])


def _check_form(node: ir.Node, bias: ir.Value | None) -> None:
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    vector = bias is None or (bias.shape is not None and len(bias.shape) == 1)
    if not plain or not vector or attribute(node, "transA", 0):
        raise Declined("gemm-form", "expected alpha = beta = 1, no transposed input and a vector bias", at=node)
