"""ACT002: the tanh form of GELU written out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, op_name, producer, scalar
from ..look import close_to, consumers, no_match, opset, past_identity, plus_scalar, require
from ..rule import Context, Declined, Replacement, Rule
from .spelling import emit_gelu, factors_of, gelu_tail

__all__ = ["GeluTanh"]

ROOT_TWO_OVER_PI: Final = math.sqrt(2 / math.pi)
CUBIC: Final = 0.044715
#: Exporters write the constants with four to sixteen digits.
TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    output: ir.Value
    dtype: ir.DataType
    standard: bool


class GeluTanh(Rule):
    """The tanh form of GELU, written out.

    ## What it finds
    ``0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x ** 3)))``, factors in any order and grouping, the
    cube as ``Pow`` or as products, and ``x * (1 + 0.044715 * x * x)`` inside.

    ## Why
    Eight nodes become one, and the bias rule can read it.

    ## Before -> After
    ``Pow, Mul, Add, Mul, Tanh, Add, Mul, Mul`` -> ``Gelu(approximate="tanh")`` (ai.onnx from opset 20,
    ``com.microsoft::FastGelu`` below). Never the erf form: the two differ by up to 5e-4.

    ## When it declines
    * ``constant``: one of 0.5, 0.79788 and 0.044715 is another number.
    * ``dtype``: the target has no kernel for the element type.
    * ``opset``: portable target below opset 20.

    ## Numerics
    ROUNDING: the same function; the kernel orders its products its own way.

    ## References
    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016. ONNX operator Gelu-20.
    """

    code: ClassVar[str] = "ACT002"
    name: ClassVar[str] = "gelu-tanh"
    anchors: ClassVar[frozenset[str]] = frozenset({"Tanh"})
    emits: ClassVar[tuple[str, ...]] = ("Gelu", "com.microsoft::FastGelu")

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`GeluTanh`."""
        source = node.inputs[0]
        inner = None if source is None else _polynomial(past_identity(source))
        if inner is None:
            raise no_match()
        x, linear, cubic = inner
        for one_plus in _plus_one(node.outputs[0]):
            output = gelu_tail(one_plus, x)
            if output is None:
                continue
            right = close_to(linear, ROOT_TWO_OVER_PI, relative=TOLERANCE)
            if not right or not close_to(cubic, CUBIC * ROOT_TWO_OVER_PI, relative=3 * TOLERANCE):
                found = f"{linear:.5g} x + {cubic:.5g} x^3"
                raise Declined("constant", f"expected tanh(0.79788 x + 0.035677 x^3), found tanh({found})", at=node)
            standard = opset(context) >= 20
            if context.target.portable and not standard:
                raise Declined("opset", f"Gelu needs opset 20, the model has {opset(context)}", at=node)
            return _Facts(x, output, require(x.dtype, "FastGelu", context.target, node), standard)
        raise no_match()

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`GeluTanh`."""
        gelu = emit_gelu(g, facts.x, facts.dtype, standard=facts.standard, approximate="tanh")
        return Replacement(old=[facts.output], new=[gelu])


def _plus_one(value: ir.Value) -> Iterator[ir.Value]:
    for node in consumers(value):
        found = plus_scalar(node.outputs[0]) if op_name(node) == "Add" else None
        if found is not None and found[1] == 1:
            yield node.outputs[0]


def _polynomial(value: ir.Value) -> tuple[ir.Value, float, float] | None:
    """(x, a, b) when the value is a * x + b * x ** 3."""
    factors, scale = factors_of(value)
    if len(factors) == 1:
        return _sum_of_odd_powers(factors[0], scale)
    if len(factors) != 2:
        return None
    for x, gate in (factors, factors[::-1]):
        plus = plus_scalar(gate)
        square = None if plus is None else _power(plus[0])
        if plus is not None and square is not None and square[0] is x and square[1] == 2:
            return x, scale * plus[1], scale * square[2]
    return None


def _sum_of_odd_powers(value: ir.Value, scale: float) -> tuple[ir.Value, float, float] | None:
    add = producer(value, "Add")
    if add is None or add.inputs[0] is None or add.inputs[1] is None:
        return None
    terms = [_power(past_identity(v)) for v in add.inputs if v is not None]
    if len(terms) != 2 or terms[0] is None or terms[1] is None:
        return None
    first, third = sorted((terms[0], terms[1]), key=lambda t: t[1])
    if first[0] is not third[0] or first[1] != 1 or third[1] != 3:
        return None
    return first[0], scale * first[2], scale * third[2]


def _power(value: ir.Value) -> tuple[ir.Value, int, float] | None:
    """(x, n, c) when the value is c * x ** n with a small whole n."""
    factors, constant = factors_of(value)
    base: ir.Value | None = None
    degree = 0
    for factor in factors:
        node = producer(factor, "Pow")
        exponent = None if node is None else scalar(node.inputs[1])
        if node is not None and node.inputs[0] is not None and exponent in (2, 3):
            factor, count = past_identity(node.inputs[0]), int(exponent)  # type: ignore[arg-type]
        else:
            count = 1
        if base is not None and factor is not base:
            return None
        base, degree = factor, degree + count
    return None if base is None else (base, degree, constant)


GeluTanh.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "p = Pow (x, three) q = Mul (p, k) s = Add (x, q) u = Mul (s, r) t = Tanh (u) a = Add "
            "(t, one) h = Mul (x, half) y = Mul (h, a)"
        ),
        emits={"Gelu": 1},
        constants=(
            "float three = {3}, float k = {0.044715}, float r = {0.7978846}, float one = {1}, float half = {0.5}"
        ),
    ),
    fires(
        "float[3,8] x",
        "float[3,8] y",
        (
            "p = Mul (x, x) q = Mul (p, k) s = Add (one, q) v = Mul (x, s) u = Mul (r, v) t = "
            "Tanh (u) a = Add (one, t) g = Mul (x, a) y = Mul (half, g)"
        ),
        emits={"com.microsoft::FastGelu": 1},
        constants="float k = {0.044715}, float r = {0.7978846}, float one = {1}, float half = {0.5}",
        opset=17,
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "p = Pow (x, three) q = Mul (p, k) s = Add (x, q) u = Mul (s, r) t = Tanh (u) a = Add "
            "(t, one) h = Mul (x, half) y = Mul (h, a)"
        ),
        because="constant",
        constants=(
            "float three = {3}, float k = {0.044715}, float r = {0.7978846}, float one = {1}, float half = {0.25}"
        ),
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        (
            "p = Pow (x, three) q = Mul (p, k) s = Add (x, q) u = Mul (s, r) t = Tanh (u) a = Add "
            "(t, one) h = Mul (x, half) y = Mul (h, a)"
        ),
        because="constant",
        constants=("float three = {3}, float k = {0.044715}, float r = {0.8}, float one = {1}, float half = {0.5}"),
    ),
)
