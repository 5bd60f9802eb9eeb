"""LAY008: a Gemm between a flattening of the leading axes and its undoing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, producer
from ..look import no_match, sole_reader
from ..rule import Context, Declined, Replacement, Rule
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
    target: tuple[int, ...] | None


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
        after, flat = back.outputs[0].shape, flatten.outputs[0].shape
        wanted = None if after is None or flat is None else [*list(after)[:-1], flat[-1]]
        target = None
        if not _has_shape(x, wanted):
            target = _regroup(x, wanted)
            if target is None:
                detail = f"{shape_text(x)} and {shape_text(back.outputs[0])} do not provably share their leading axes"
                raise Declined("shape-not-proven", detail, at=node)
        transposed = bool(attribute(node, "transB", 0))
        return _Facts(x, weight, bias, back.outputs[0], transposed, target)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`FlattenedGemm`."""
        x, weight = facts.x, facts.weight
        if facts.target is not None:
            x = g.op("Reshape", x, g.const(np.array(facts.target, np.int64)), dtype=x.dtype)
            assert facts.output.shape is not None
            x.shape = ir.Shape([*list(facts.output.shape)[:-1], facts.target[-1]])
        if facts.transposed:
            rows, columns = weight.shape if weight.shape is not None else (None, None)
            weight = g.op("Transpose", weight, perm=[1, 0], shape=[columns, rows])
        product = g.op("MatMul", x, weight, dtype=x.dtype, shape=facts.output.shape)
        if facts.bias is not None:
            product = g.op("Add", product, facts.bias, dtype=x.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[product])


def _has_shape(x: ir.Value, wanted: list[Any] | None) -> bool:
    if x.shape is None or wanted is None or len(x.shape) != len(wanted):
        return False
    return all(same_dim(a, b) for a, b in zip(x.shape, wanted, strict=True))


def _regroup(x: ir.Value, wanted: list[Any] | None) -> tuple[int, ...] | None:
    """A constant target that merges the last axes of x, when its leading axes are the wanted ones already."""
    if x.shape is None or wanted is None or len(x.shape) <= len(wanted) or not isinstance(wanted[-1], int):
        return None
    merged = list(x.shape)[len(wanted) - 1 :]
    sizes = [d for d in merged if isinstance(d, int)]
    leading = all(same_dim(a, b) for a, b in zip(list(x.shape), wanted[:-1], strict=False))
    if not leading or len(sizes) != len(merged) or math.prod(sizes) != wanted[-1]:
        return None
    return (*[0] * (len(wanted) - 1), wanted[-1])


def _check_form(node: ir.Node, bias: ir.Value | None) -> None:
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    vector = bias is None or (bias.shape is not None and len(bias.shape) == 1)
    if not plain or not vector or attribute(node, "transA", 0):
        raise Declined("gemm-form", "expected alpha = beta = 1, no transposed input and a vector bias", at=node)


FlattenedGemm.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,3] y",
        (
            "f = Reshape (x, flat) g = Gemm (f, w, c) n = Shape <start = 0, end = 2> (x) t = "
            "Concat <axis = 0> (n, three) y = Reshape (g, t)"
        ),
        emits={"Gemm": 0, "MatMul": 1, "Add": 1},
        constants=(
            "int64[2] flat = {-1, 8}, int64[1] three = {3}, float[8,3] w = {1, 2, 3, 4, 5, 6, 7, "
            "8, 9, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, -1, -2, -3, -4, -5, -6, -7, -8, -9}, float[3] c "
            "= {1, -2, 3}"
        ),
    ),
    fires(
        "float[2,5,2,4] x",
        "float[2,5,3] y",
        "f = Reshape (x, flat) g = Gemm (f, w) y = Reshape (g, back)",
        emits={"Gemm": 0, "MatMul": 1},
        constants=(
            "int64[2] flat = {-1, 8}, int64[3] back = {2, 5, 3}, float[8,3] w = {1, 2, 3, 4, 5, "
            "6, 7, 8, 9, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, -1, -2, -3, -4, -5, -6, -7, -8, -9}"
        ),
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,3] y",
        (
            "f = Reshape (x, flat) g = Gemm <alpha = 2.0> (f, w, c) n = Shape <start = 0, end = "
            "2> (x) t = Concat <axis = 0> (n, three) y = Reshape (g, t)"
        ),
        because="gemm-form",
        constants=(
            "int64[2] flat = {-1, 8}, int64[1] three = {3}, float[8,3] w = {1, 2, 3, 4, 5, 6, 7, "
            "8, 9, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, -1, -2, -3, -4, -5, -6, -7, -8, -9}, float[3] c "
            "= {1, -2, 3}"
        ),
    ),
    declines(
        "float[B,S,8] x, int64[3] t",
        "float[N,M,3] y",
        "f = Reshape (x, flat) g = Gemm (f, w, c) y = Reshape (g, t)",
        because="shape-not-proven",
        constants=(
            "int64[2] flat = {-1, 8}, float[8,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1.5, 2.5, 3.5, "
            "4.5, 5.5, 6.5, -1, -2, -3, -4, -5, -6, -7, -8, -9}, float[3] c = {1, -2, 3}"
        ),
    ),
)
