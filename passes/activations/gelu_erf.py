"""ACT001: the exact GELU written with Erf."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, op_name
from ..look import close_to, consumers, no_match, opset, past_identity, plus_scalar, require, times_scalar
from ..rule import Context, Declined, Replacement, Rule
from .spelling import emit_gelu, gelu_tail

__all__ = ["GeluErf"]

INVERSE_ROOT_TWO: Final = 1 / math.sqrt(2)
#: Exporters write 1 / sqrt(2) with three to sixteen digits; closer than this is taken for it.
TOLERANCE: Final = 1e-4


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    output: ir.Value
    dtype: ir.DataType
    standard: bool


class GeluErf(Rule):
    """The exact GELU, written out.

    ## What it finds
    ``0.5 * x * (1 + erf(x / sqrt(2)))`` with its factors in any order and grouping, the constant as a factor
    or a divisor.

    ## Why
    Five nodes become one, and the bias rule can read it.

    ## Before -> After
    ``Div, Erf, Add, Mul, Mul`` -> ``Gelu`` (ai.onnx from opset 20, com.microsoft below).

    ## When it declines
    * ``constant``: the factor inside Erf is not 1 / sqrt(2), or the outer one is not 0.5.
    * ``dtype``: the target has no kernel for the element type.
    * ``opset``: portable target below opset 20.

    ## Numerics
    ROUNDING: the same function; the kernel orders its products its own way.

    ## References
    Hendrycks and Gimpel, Gaussian Error Linear Units, 2016. ONNX operator Gelu-20.
    """

    code: ClassVar[str] = "ACT001"
    name: ClassVar[str] = "gelu-erf"
    anchors: ClassVar[frozenset[str]] = frozenset({"Erf"})
    emits: ClassVar[tuple[str, ...]] = ("Gelu", "com.microsoft::Gelu")

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`GeluErf`."""
        inner = None if node.inputs[0] is None else times_scalar(past_identity(node.inputs[0]))
        if inner is None:
            raise no_match()
        x, factor = inner
        for one_plus in _plus_one(node.outputs[0]):
            output = gelu_tail(one_plus, x)
            if output is None:
                continue
            if not close_to(abs(factor), INVERSE_ROOT_TWO, relative=TOLERANCE) or factor < 0:
                raise Declined("constant", f"expected erf(x * 0.70711), found erf(x * {factor:.5g})", at=node)
            return self._supported(x, output, node, context)
        raise no_match()

    def _supported(self, x: ir.Value, output: ir.Value, node: ir.Node, context: Context) -> _Facts:
        standard = opset(context) >= 20
        if context.target.portable and not standard:
            raise Declined("opset", f"Gelu needs opset 20, the model has {opset(context)}", at=node)
        return _Facts(x, output, require(x.dtype, "Gelu", context.target, node), standard)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`GeluErf`."""
        return Replacement(old=[facts.output], new=[emit_gelu(g, facts.x, facts.dtype, standard=facts.standard)])


def _plus_one(value: ir.Value) -> Iterator[ir.Value]:
    """Readers that add one."""
    for node in consumers(value):
        found = plus_scalar(node.outputs[0]) if op_name(node) == "Add" else None
        if found is not None and found[1] == 1:
            yield node.outputs[0]


GeluErf.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
        emits={"Gelu": 1},
        constants="float root = {1.4142135}, float one = {1}, float half = {0.5}",
    ),
    fires(
        "float[3,8] x",
        "float[3,8] y",
        "h = Mul (half, x) d = Mul (x, inverse) e = Erf (d) a = Add (one, e) y = Mul (h, a)",
        emits={"com.microsoft::Gelu": 1},
        constants="float inverse = {0.70710677}, float one = {1}, float half = {0.5}",
        opset=17,
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
        because="constant",
        constants="float root = {1.5}, float one = {1}, float half = {0.5}",
    ),
    declines(
        "double[B,8] x",
        "double[B,8] y",
        "d = Div (x, root) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
        because="dtype",
        constants="double root = {1.4142135623730951}, double one = {1}, double half = {0.5}",
    ),
)
