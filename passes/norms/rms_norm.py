"""NRM001: root-mean-square normalisation written out, or as ai.onnx RMSNormalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, dims, op_name, producer
from ..look import (
    FLOATS,
    cast_target,
    consumers,
    exactly_last_axis,
    no_match,
    opset,
    past_casts,
    require,
    square_of,
)
from ..rule import Context, Declined, Replacement, Rule
from ..symbols import same_dim
from .root import inverse_root_products, other_operand

__all__ = ["RmsNorm"]

#: Schema attribute of both operators: arithmetic in float32.
STASH_FLOAT32: Final = 1


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    weight: ir.Value | None
    epsilon: float
    output: ir.Value
    dtype: ir.DataType
    standard: bool


@dataclass(frozen=True, slots=True)
class _Tail:
    """What follows the normalised value: the weight it is multiplied by and the value that ends the norm."""

    weight: ir.Value | None
    output: ir.Value
    narrowed: bool


class RmsNorm(Rule):
    """Root-mean-square normalisation over the last axis.

    ## What it finds
    ``x / sqrt(mean(x ** 2) + epsilon) * weight`` in its spellings: ``Pow`` or ``x * x``, ``Sqrt`` with
    ``Reciprocal``, ``Div`` or ``Pow(-0.5)``, operands in either order, the weight as a parameter, as
    ``1 + parameter`` (Gemma) or absent, with the casts to float32 and back that half-precision models have.
    ai.onnx ``RMSNormalization`` (opset 23) is found too, so that the skip rule can read it.

    ## Why
    Six to nine nodes read and write the hidden state six times. onnxruntime does not fuse what torch's
    exporter writes.

    ## Before -> After
    ``Pow, ReduceMean, Add, Sqrt, Reciprocal, Mul, Mul`` -> ``SimplifiedLayerNormalization`` (onnxruntime's,
    domain ai.onnx); for the portable target ``RMSNormalization`` when the opset has it.

    ## When it declines
    * ``axis``: the mean runs over other axes than the last.
    * ``epsilon-outside-root``: epsilon is added after the root.
    * ``weight-shape``: the weight is not one number a feature.
    * ``dtype``: the target has no kernel for the element type.
    * ``opset``: portable target below opset 23.

    ## Numerics
    ROUNDING: the same sum in another order, in float32 also for half-precision inputs. A cast to half
    precision before the weight is skipped, which rounds once less.

    ## References
    Zhang and Sennrich, Root Mean Square Layer Normalization, 2019. ONNX operator RMSNormalization-23.
    """

    code: ClassVar[str] = "NRM001"
    name: ClassVar[str] = "rms-norm"
    anchors: ClassVar[frozenset[str]] = frozenset({"ReduceMean", "RMSNormalization"})
    emits: ClassVar[tuple[str, ...]] = ("SimplifiedLayerNormalization", "RMSNormalization")

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`RmsNorm`."""
        if node.op_type == "RMSNormalization":
            return self._standard(node, context)
        x_wide = square_of(node.inputs[0]) if node.inputs[0] is not None else None
        if x_wide is None:
            raise no_match()
        if _centred(x_wide):
            raise no_match("a layer norm")
        normalised, epsilon = inverse_root_products(node, x_wide)
        if not exactly_last_axis(node):
            raise Declined("axis", "the mean must run over the last axis alone and keep it", at=node)
        tail = _tail(normalised, x_wide)
        x = past_casts(x_wide) if tail.narrowed else x_wide
        if x.dtype != tail.output.dtype:
            x = x_wide
        return self._facts(x, tail.weight, epsilon, tail.output, node, context)

    def _standard(self, node: ir.Node, context: Context) -> _Facts:
        x, weight = node.inputs[0], node.inputs[1]
        shape = dims(x)
        axis = attribute(node, "axis", -1)
        if context.target.portable:
            raise no_match("already standard")
        if x is None or weight is None or shape is None or axis not in (-1, len(shape) - 1):
            raise Declined("axis", "only the last axis is normalised by the fused operator", at=node)
        if attribute(node, "stash_type", STASH_FLOAT32) != STASH_FLOAT32:
            raise Declined("dtype", "the arithmetic is not in float32", at=node)
        epsilon = float(attribute(node, "epsilon", 1e-5))
        return self._facts(x, weight, epsilon, node.outputs[0], node, context)

    def _facts(
        self,
        x: ir.Value,
        weight: ir.Value | None,
        epsilon: float,
        output: ir.Value,
        node: ir.Node,
        context: Context,
    ) -> _Facts:
        standard = context.target.portable
        if standard and opset(context) < 23:
            raise Declined("opset", f"RMSNormalization needs opset 23, the model has {opset(context)}", at=node)
        op = "RMSNormalization" if standard else "SimplifiedLayerNormalization"
        dtype = require(x.dtype, op, context.target, node)
        if x.shape is None:
            raise Declined("shape-unknown", "the rank of the input is not known", at=node)
        size = x.shape[-1]
        if weight is None and not isinstance(size, int):
            raise Declined("weight-shape", "without a weight the number of features must be known", at=node)
        if weight is not None:
            shape = weight.shape
            if shape is None or len(shape) != 1 or not same_dim(shape[0], size):
                raise Declined("weight-shape", f"expected one weight a feature, found shape {shape}", at=node)
            if weight.dtype != dtype:
                raise Declined("dtype", f"the weight is {weight.dtype}, the input {dtype}", at=node)
        return _Facts(x, weight, epsilon, output, dtype, standard)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`RmsNorm`."""
        weight = facts.weight
        if weight is None:
            assert facts.x.shape is not None
            weight = g.const(np.ones(int(facts.x.shape[-1]), facts.dtype.numpy()))
            g.relies_on(weight)
        op = "RMSNormalization" if facts.standard else "SimplifiedLayerNormalization"
        normed = g.op(
            op,
            facts.x,
            weight,
            axis=-1,
            epsilon=facts.epsilon,
            stash_type=STASH_FLOAT32,
            dtype=facts.dtype,
            shape=facts.x.shape,
        )
        return Replacement(old=[facts.output], new=[normed])


def _centred(x: ir.Value) -> bool:
    """Whether x is what a layer norm squares: something minus its own mean."""
    node = producer(x, "Sub")
    if node is None or node.inputs[1] is None:
        return False
    mean = producer(past_casts(node.inputs[1]), "ReduceMean")
    return mean is not None and mean.inputs[0] is node.inputs[0]


def _tail(normalised: ir.Value, x_wide: ir.Value) -> _Tail:
    """Walk down over a cast back and the multiplication with the weight."""
    narrowed = False
    value = normalised
    readers = list(consumers(value))
    if len(readers) == 1 and _narrows(readers[0], x_wide) and not value.is_graph_output():
        value, narrowed = readers[0].outputs[0], True
        readers = list(consumers(value))
    if len(readers) == 1 and op_name(readers[0]) == "Mul" and not value.is_graph_output():
        weight = other_operand(readers[0], value)
        if weight is not None and weight.shape is not None and len(weight.shape) == 1:
            return _Tail(weight, readers[0].outputs[0], narrowed)
    return _Tail(None, value, narrowed)


def _narrows(node: ir.Node, x_wide: ir.Value) -> bool:
    """A cast back to the type x had before it was widened."""
    return op_name(node) == "Cast" and cast_target(node) in FLOATS and cast_target(node) == past_casts(x_wide).dtype


RmsNorm.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "p = Pow (x, two) m = ReduceMean <keepdims = 1> (p, last) a = Add (m, eps) r = Sqrt "
            "(a) i = Reciprocal (r) n = Mul (x, i) y = Mul (w, n)"
        ),
        emits={"SimplifiedLayerNormalization": 1},
        constants=(
            "float two = {2}, int64[1] last = {-1}, float eps = {0.000001}, float[8] w = {0.5, "
            "-1.5, 2, 0.25, 3, -0.75, 1.25, 4}"
        ),
    ),
    fires(
        "float16[2,3,8] x, float16[8] w",
        "float16[2,3,8] y",
        (
            "h = Cast <to = 1> (x) p = Mul (h, h) m = ReduceMean <keepdims = 1> (p, last) a = Add "
            "(eps, m) r = Sqrt (a) n = Div (h, r) l = Cast <to = 10> (n) y = Mul (l, w)"
        ),
        emits={"SimplifiedLayerNormalization": 1},
        constants="int64[1] last = {-1}, float eps = {0.00001}",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "p = Mul (x, x) m = ReduceMean <keepdims = 1> (p, axis) a = Add (m, eps) r = Sqrt (a) "
            "n = Div (x, r) y = Mul (n, w)"
        ),
        because="axis",
        constants=("int64[1] axis = {1}, float eps = {0.000001}, float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}"),
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "p = Mul (x, x) m = ReduceMean <keepdims = 1> (p, last) r = Sqrt (m) a = Add (r, eps) "
            "n = Div (x, a) y = Mul (n, w)"
        ),
        because="epsilon-outside-root",
        constants=(
            "int64[1] last = {-1}, float eps = {0.000001}, float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}"
        ),
    ),
)
