"""LAY003: an operator that gives back what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, constant, scalar
from ..look import cast_target, no_match
from ..rule import Context, Declined, Replacement, Rule, Safety
from .target import keeps_shape, pass_through, shape_text

__all__ = ["NoOp"]

#: A Slice end at or above this means "to the end".
FAR: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    output: ir.Value


class NoOp(Rule):
    """An operator whose result is its input.

    ## What it finds
    ``Reshape``, ``Expand``, ``Squeeze`` and ``Unsqueeze`` to the shape that is already there, ``Slice`` over the
    whole range, ``Cast`` to the same type, ``Transpose`` by the identity, ``Concat`` of one value and
    ``Identity``; multiplying or dividing by one, adding an integer zero, ``And`` with true, ``Or`` with false.

    ## Why
    Exporters write them for bookkeeping; each costs a launch or a copy, and hides neighbours from other rules.

    ## Before -> After
    ``Reshape`` -> nothing.

    ## When it declines
    * ``shape-not-proven``: the shapes before and after are not provably equal.
    * ``graph-output``: it connects an input of the graph with an output.

    ## Numerics
    EXACT: nothing is computed.

    ## References
    ONNX operators Reshape-14, Expand-13, Slice-13, Cast-13, Transpose-13, Concat-13.
    """

    code: ClassVar[str] = "LAY003"
    name: ClassVar[str] = "no-op"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset(
        {"Cast", "Concat", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
        | {"Add", "And", "Div", "Mul", "Or", "Sub"}
    )
    emits: ClassVar[tuple[str, ...]] = ()

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`NoOp`."""
        source = node.inputs[0] if node.inputs else None
        if source is None:
            raise no_match()
        if node.op_type in _NEUTRAL:
            source = _beside_neutral(node)
        else:
            _TESTS[node.op_type](node)
        pass_through(node.outputs[0], source)
        return _Facts(source, node.outputs[0])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`NoOp`."""
        return pass_through(facts.output, facts.source)


def _always(node: ir.Node) -> None:
    """Identity is one by definition."""


def _same_shape(node: ir.Node) -> None:
    if keeps_shape(node):
        return
    source, output = node.inputs[0], node.outputs[0]
    assert source is not None
    here, there = source.shape, output.shape
    certain = here is None or there is None or len(here) != len(there)
    if certain or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(here, there, strict=True)):
        raise no_match()
    detail = f"{shape_text(source)} and {shape_text(output)} are not provably equal"
    raise no_match(detail) if node.op_type != "Expand" else Declined("shape-not-proven", detail, at=node)


def _same_type(node: ir.Node) -> None:
    assert node.inputs[0] is not None
    if node.inputs[0].dtype != cast_target(node):
        raise no_match()


def _single(node: ir.Node) -> None:
    if len(node.inputs) != 1:
        raise no_match()


def _identity_order(node: ir.Node) -> None:
    perm = attribute(node, "perm")
    if perm is None or list(perm) != list(range(len(perm))):
        raise no_match()


def _whole_range(node: ir.Node) -> None:
    inputs = [*node.inputs, None, None][:5]
    starts, ends, steps = constant(inputs[1]), constant(inputs[2]), constant(inputs[4])
    if inputs[4] is not None and (steps is None or np.any(steps != 1)):
        raise no_match()
    if starts is not None and ends is not None and np.all(starts == 0) and np.all(ends >= FAR):
        return
    if not keeps_shape(node):
        raise no_match()


#: The constant that changes nothing, by operator. A floating-point zero is none: -0 + 0 is 0.
_NEUTRAL: Final[dict[str, float | bool]] = {"Add": 0, "And": True, "Div": 1, "Mul": 1, "Or": False, "Sub": 0}


def _beside_neutral(node: ir.Node) -> ir.Value:
    """The operand beside a constant that changes neither its elements nor its shape."""
    left, right = node.inputs
    pairs = [(left, right)] if node.op_type in ("Div", "Sub") else [(left, right), (right, left)]
    for x, other in pairs:
        number = scalar(other)
        if x is None or other is None or number is None or number != _NEUTRAL[node.op_type]:
            continue
        inexact = node.op_type in ("Add", "Sub") and isinstance(number, float)
        if not inexact and x.shape is not None and other.shape is not None and len(other.shape) <= len(x.shape):
            return x
    raise no_match()


_TESTS: Final[dict[str, Callable[[ir.Node], None]]] = {
    "Cast": _same_type,
    "Concat": _single,
    "Expand": _same_shape,
    "Identity": _always,
    "Reshape": _same_shape,
    "Slice": _whole_range,
    "Squeeze": _same_shape,
    "Transpose": _identity_order,
    "Unsqueeze": _same_shape,
}


NoOp.examples = (
    fires(
        "int64[S] x, bool[B,S] m, float[B,S] f",
        "int64[S] y, bool[B,S] n, float[B,S] g",
        "a = Neg (x) b = Add (zero, a) y = Abs (b) c = Not (m) d = And (c, yes) n = Not (d) "
        "h = Neg (f) i = Mul (h, one) j = Add (i, nought) g = Abs (j)",
        emits={"Add": 1, "And": 0, "Mul": 0},
        times=3,
        constants="int64 zero = {0}, bool[1] yes = {1}, float one = {1}, float nought = {0}",
    ),
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "h = Neg (x) a = Reshape (h, same) y = Abs (a)",
        emits={"Reshape": 0},
        constants="int64[3] same = {0, 0, 8}",
    ),
    fires(
        "float[2,6] x",
        "float[2,6] y",
        "h = Neg (x) a = Slice (h, zero, far, axis) b = Cast <to = 1> (a) y = Abs (b)",
        emits={"Slice": 0, "Cast": 0},
        constants="int64[1] zero = {0}, int64[1] far = {9223372036854775807}, int64[1] axis = {1}",
        times=2,
    ),
    declines(
        "float[B,S] x",
        "float[B,S] y",
        "y = Cast <to = 1> (x)",
        because="graph-output",
    ),
    declines(
        "float[B,1] x, int64[2] n",
        "float[B,N] y",
        "h = Neg (x) e = Expand (h, n) y = Abs (e)",
        because="shape-not-proven",
    ),
)
