"""NRM002: layer normalisation written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, op_name, producer
from ..look import (
    FLOATS,
    cast_target,
    consumers,
    exactly_last_axis,
    no_match,
    opset,
    past_casts,
    past_identity,
    require,
    square_of,
)
from ..rule import Context, Declined, Replacement, Rule
from ..symbols import same_dim
from .root import inverse_root_products, other_operand

__all__ = ["LayerNorm"]


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    weight: ir.Value | None
    bias: ir.Value | None
    epsilon: float
    output: ir.Value
    dtype: ir.DataType


class LayerNorm(Rule):
    """Layer normalisation over the last axis, written as plain operators.

    ## What it finds
    ``(x - mean(x)) / sqrt(mean((x - mean(x)) ** 2) + epsilon) * weight + bias`` in its spellings: ``Pow`` or
    a product, ``Div`` or ``Reciprocal``, operands in either order, weight and bias present or absent, with
    casts to float32 and back.

    ## Why
    Nine nodes become one, and the skip rule can read it. onnxruntime finds some of the spellings itself, at
    load time, for some providers.

    ## Before -> After
    ``ReduceMean, Sub, Pow, ReduceMean, Add, Sqrt, Div, Mul, Add`` -> ``LayerNormalization`` (ai.onnx, 17).

    ## When it declines
    * ``axis``: a mean runs over other axes than the last.
    * ``epsilon-outside-root``: epsilon is added after the root.
    * ``weight-shape``: weight or bias is not one number a feature.
    * ``dtype``: the target has no kernel for the element type.
    * ``opset``: the model is below opset 17.

    ## Numerics
    ROUNDING: the same sums in another order.

    ## References
    Ba, Kiros and Hinton, Layer Normalization, 2016. ONNX operator LayerNormalization-17.
    """

    code: ClassVar[str] = "NRM002"
    name: ClassVar[str] = "layer-norm"
    anchors: ClassVar[frozenset[str]] = frozenset({"ReduceMean"})
    emits: ClassVar[tuple[str, ...]] = ("LayerNormalization",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`LayerNorm`."""
        centred = square_of(node.inputs[0]) if node.inputs[0] is not None else None
        x_wide = None if centred is None else _uncentred(past_casts(centred))
        if centred is None or x_wide is None:
            raise no_match()
        normalised, epsilon = inverse_root_products(node, centred)
        mean = producer(past_casts(producer(past_casts(centred)).inputs[1]))  # type: ignore[union-attr, arg-type]
        if mean is None or not exactly_last_axis(node) or not exactly_last_axis(mean):
            raise Declined("axis", "both means must run over the last axis alone and keep it", at=node)
        value, narrowed = _past_narrowing(normalised, x_wide)
        value, weight = _row_operand(value, "Mul")
        value, bias = _row_operand(value, "Add")
        if not narrowed:
            value, narrowed = _past_narrowing(value, x_wide) if weight is None and bias is None else (value, False)
        x = past_casts(x_wide) if narrowed else x_wide
        return self._checked(_Facts(x, weight, bias, epsilon, value, x.dtype or ir.DataType.FLOAT), node, context)

    def _checked(self, facts: _Facts, node: ir.Node, context: Context) -> _Facts:
        if opset(context) < 17:
            raise Declined("opset", f"LayerNormalization needs opset 17, the model has {opset(context)}", at=node)
        dtype = require(facts.x.dtype, "LayerNormalization", context.target, node)
        if facts.x.shape is None:
            raise Declined("shape-unknown", "the rank of the input is not known", at=node)
        size = facts.x.shape[-1]
        if facts.weight is None and not isinstance(size, int):
            raise Declined("weight-shape", "without a weight the number of features must be known", at=node)
        for row in (facts.weight, facts.bias):
            if row is None:
                continue
            if row.shape is None or len(row.shape) != 1 or not same_dim(row.shape[0], size):
                raise Declined("weight-shape", f"expected one number a feature, found shape {row.shape}", at=node)
            if row.dtype != dtype:
                raise Declined("dtype", f"the weight is {row.dtype}, the input {dtype}", at=node)
        return facts

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`LayerNorm`."""
        weight = facts.weight
        if weight is None:
            assert facts.x.shape is not None
            weight = g.const(np.ones(int(facts.x.shape[-1]), facts.dtype.numpy()))
            g.relies_on(weight)
        normed = g.op(
            "LayerNormalization",
            facts.x,
            weight,
            facts.bias,
            axis=-1,
            epsilon=facts.epsilon,
            dtype=facts.dtype,
            shape=facts.x.shape,
        )
        return Replacement(old=[facts.output], new=[normed])


def _uncentred(value: ir.Value) -> ir.Value | None:
    """x when the value is x - mean(x)."""
    node = producer(value, "Sub")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    mean = producer(past_casts(node.inputs[1]), "ReduceMean")
    if mean is None or mean.inputs[0] is None:
        return None
    same = past_casts(mean.inputs[0]) is past_casts(node.inputs[0])
    return past_identity(node.inputs[0]) if same else None


def _past_narrowing(value: ir.Value, x_wide: ir.Value) -> tuple[ir.Value, bool]:
    """Past a cast back to the type that x had before it was widened."""
    readers = list(consumers(value))
    source = past_casts(x_wide)
    if len(readers) != 1 or value.is_graph_output() or op_name(readers[0]) != "Cast" or source is x_wide:
        return value, False
    kept = cast_target(readers[0]) == source.dtype and source.dtype in FLOATS
    return (readers[0].outputs[0], True) if kept else (value, False)


def _row_operand(value: ir.Value, op: str) -> tuple[ir.Value, ir.Value | None]:
    """(result, vector) when the only reader multiplies by or adds a vector along the last axis."""
    readers = list(consumers(value))
    if len(readers) != 1 or value.is_graph_output() or op_name(readers[0]) != op:
        return value, None
    row = other_operand(readers[0], value)
    if row is None or row.shape is None or len(row.shape) != 1:
        return value, None
    return readers[0].outputs[0], row


LayerNorm.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "m = ReduceMean <keepdims = 1> (x, last) d = Sub (x, m) p = Pow (d, two) v = "
            "ReduceMean <keepdims = 1> (p, last) a = Add (v, eps) r = Sqrt (a) n = Div (d, r) s = "
            "Mul (n, w) y = Add (s, c)"
        ),
        emits={"LayerNormalization": 1},
        constants=(
            "float two = {2}, int64[1] last = {-1}, float eps = {0.00001}, float[8] w = {0.5, "
            "-1.5, 2, 0.25, 3, -0.75, 1.25, 4}, float[8] c = {1, 0.5, -2, 0.125, -1, 0.75, 2.5, "
            "-0.5}"
        ),
    ),
    fires(
        "float[3,8] x",
        "float[3,8] y",
        (
            "m = ReduceMean <keepdims = 1> (x, last) d = Sub (x, m) p = Mul (d, d) v = ReduceMean "
            "<keepdims = 1> (p, last) a = Add (eps, v) r = Sqrt (a) i = Reciprocal (r) y = Mul "
            "(i, d)"
        ),
        emits={"LayerNormalization": 1},
        constants="int64[1] last = {-1}, float eps = {0.001}",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "m = ReduceMean <keepdims = 1> (x, last) d = Sub (x, m) p = Mul (d, d) v = ReduceMean "
            "<keepdims = 1> (p, last) r = Sqrt (v) a = Add (r, eps) n = Div (d, a) y = Mul (n, w)"
        ),
        because="epsilon-outside-root",
        constants=("int64[1] last = {-1}, float eps = {0.00001}, float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}"),
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "m = ReduceMean <keepdims = 1> (x, last) d = Sub (x, m) p = Mul (d, d) v = ReduceMean "
            "<keepdims = 1> (p, last) a = Add (v, eps) r = Sqrt (a) n = Div (d, r) y = Mul (n, w)"
        ),
        because="axis",
        constants=("int64[1] last = {1}, float eps = {0.00001}, float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}"),
    ),
)
