"""ATT004: a softmax over keys that are not the last axis is turned so that they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, dims, op_name, producer, scalar
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .scores import leads_to_product

__all__ = ["ELEMENTWISE", "SoftmaxAxis", "in_order", "swap"]

#: Values looked at between a softmax and its product: factors, cap, biases and masks are few.
_MOST = 64
ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Tanh", "Max", "Clip")
#: What hands weights on to their product with the value.
_CARRIES = ("Where", "Cast", "Identity")


@dataclass(frozen=True, slots=True)
class Facts:
    """The softmax, the order of axes that puts its own last, and what its weights go through before the value."""

    node: ir.Node
    perm: tuple[int, ...]
    below: tuple[ir.Node, ...]


class SoftmaxAxis(Rule):
    """Attention weights normalised over an axis that is not the last.

    ## What it finds
    Softmax whose input is a product of two computed tensors, turned by a Transpose, over element-wise
    operators: einsum code that keeps heads last or keys before queries. Guards of empty rows behind the softmax turn
    with it.

    ## Why
    Recognition reads scores as (..., queries, keys). Turning them costs nothing: the transposes meet those of
    the products and vanish.

    ## Before -> After
    ``Softmax(axis=2)(f(Transpose(s)))`` -> ``Transpose(Softmax(axis=-1)(f'(Transpose'(s))))``

    ## When it declines
    ``unknown-rank`` when the rank of a tensor on the way is not known.

    ## Numerics
    ROUNDING (the sum runs over the same numbers).

    ## References
    ONNX operators, Softmax-13.
    """

    code = "ATT004"
    name = "softmax-axis"
    safety = Safety.ROUNDING
    anchors = frozenset({"Softmax"})
    emits = ("Softmax",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        shape = dims(node.outputs[0])
        source = node.inputs[0]
        assert source is not None
        transpose = _turned_product(source)
        if transpose is None and not leads_to_product(source):
            raise Declined("no-match", "no attention scores")
        if shape is None or len(shape) < 3:
            raise Declined("unknown-rank", "the rank of the scores is not known or below 3", at=node)
        rank = len(shape)
        axis = attribute(node, "axis", -1) % rank
        if axis == rank - 1 and leads_to_product(source):  # another product beside it may be turned: a position term
            raise Declined("no-match", "queries and keys are the last axes already")
        turned = list(attribute(transpose, "perm", ())) if transpose is not None else list(range(rank))
        back = tuple(int(i) for i in np.argsort(turned))
        perm = back if back[-1] == axis else (*(i for i in range(rank) if i != axis), axis)
        if perm == tuple(range(rank)):
            raise Declined("no-match", "queries and keys are the last axes already")
        return Facts(node, perm, tuple(_below(node.outputs[0])))

    def build(self, facts: Facts, g: Builder) -> Replacement:
        source, old = facts.node.inputs[0], facts.node.outputs[0]
        assert source is not None
        turned = in_order(g, source, facts.perm, 16)
        soft = g.op("Softmax", turned, axis=-1, dtype=old.dtype, shape=turned.shape)
        turned_weights = {id(old): soft}
        for node in facts.below:
            turned_weights[id(node.outputs[0])] = _carried(g, node, facts.perm, turned_weights)
        weights = [old, *(node.outputs[0] for node in facts.below)]
        back = [int(i) for i in np.argsort(facts.perm)]
        return Replacement(
            old=weights,
            new=[g.op("Transpose", turned_weights[id(v)], perm=back, dtype=v.dtype, shape=v.shape) for v in weights],
        )


def _below(weights: ir.Value) -> list[ir.Node]:
    """The guards and casts that carry weights on, nearest first."""
    found: list[ir.Node] = []
    while len(found) < 6:
        users = {id(u.node): u.node for u in weights.uses()}.values()
        carriers = [n for n in users if op_name(n) in _CARRIES and _carries(n, weights)]
        if len(carriers) != 1 or len(dims(carriers[0].outputs[0]) or ()) != len(dims(weights) or ()):
            break
        found.append(carriers[0])
        weights = carriers[0].outputs[0]
    return found


def _carries(node: ir.Node, weights: ir.Value) -> bool:
    """Whether a node hands weights on: a Where in one arm, whose other is one number, and whose shapes are known."""
    if node.op_type != "Where":
        return True
    arms = [v for v in node.inputs[1:] if v is not weights]
    test = node.inputs[0]
    return len(arms) == 1 and scalar(arms[0]) is not None and dims(test) is not None


def _carried(g: Builder, node: ir.Node, perm: tuple[int, ...], turned: dict[int, ir.Value]) -> ir.Value:
    """A guard or cast of weights, over turned ones."""
    old = node.outputs[0]
    shape = [list(old.shape or ())[i] for i in perm]
    given = {a.name: a.value for a in node.attributes.values()}
    inputs = [_condition(g, v, perm, turned) for v in node.inputs if v is not None]
    return g.op(node.op_type, *inputs, dtype=old.dtype, shape=shape, **given)


def _condition(g: Builder, value: ir.Value, perm: tuple[int, ...], turned: dict[int, ir.Value]) -> ir.Value:
    """An operand of a guard, turned: the weights themselves, a test of them, a mask, or a number."""
    if id(value) in turned:
        return turned[id(value)]
    test = producer(value, "IsNaN")
    if test is not None and id(test.inputs[0]) in turned:
        source = turned[id(test.inputs[0])]
        return g.op("IsNaN", source, dtype=ir.DataType.BOOL, shape=source.shape)
    return value if scalar(value) is not None else in_order(g, value, perm, 16)


def _turned_product(value: ir.Value) -> ir.Node | None:
    """The Transpose of a score product that a value comes from over element-wise operators, or None."""
    queue, seen = [value], {id(value)}
    while queue and len(seen) < _MOST:
        node = queue.pop(0).producer()
        if node is None:
            continue
        if node.op_type == "Transpose" and node.inputs[0] is not None and leads_to_product(node.inputs[0]):
            return node
        if node.op_type not in ELEMENTWISE:
            continue
        above = [v for v in (node.inputs[1:] if node.op_type == "Where" else node.inputs) if v is not None]
        queue += [v for v in above if id(v) not in seen]
        seen |= {id(v) for v in above}
    return None


def in_order(g: Builder, value: ir.Value, perm: tuple[int, ...], depth: int) -> ir.Value:
    """A value with its axes in another order, the transposition moved up as far as element-wise operators go."""
    rank = len(perm)
    shape = dims(value)
    if shape is None:
        raise Declined("unknown-rank", f"the rank of '{value.name}' is not known", at=value)
    if not shape or all(d == 1 for d in shape):
        return value
    if len(shape) < rank:
        axes = g.const(np.arange(rank - len(shape), dtype=np.int64))
        wide = [1] * (rank - len(shape)) + list(value.shape or ())
        value = g.op("Unsqueeze", value, axes, dtype=value.dtype, shape=wide)
        return _moved(g, value, perm)
    node = producer(value, *ELEMENTWISE) if depth else None
    if node is not None and all(v is not None for v in node.inputs):
        inputs = [in_order(g, v, perm, depth - 1) for v in node.inputs if v is not None]
        result = [list(value.shape or ())[i] for i in perm]
        given = {a.name: a.value for a in node.attributes.values()}
        return g.op(node.op_type, *inputs, dtype=value.dtype, shape=result, **given)
    product = producer(value, "MatMul")
    if product is not None and perm == swap(rank) and all(len(dims(v) or ()) == rank for v in product.inputs):
        left, right = (v for v in product.inputs if v is not None)
        result = [list(value.shape or ())[i] for i in perm]
        return g.op("MatMul", _moved(g, right, perm), _moved(g, left, perm), dtype=value.dtype, shape=result)
    above = producer(value, "Transpose")
    if above is not None and above.inputs[0] is not None:
        first = list(attribute(above, "perm", range(rank - 1, -1, -1)))
        return _moved(g, above.inputs[0], tuple(first[i] for i in perm))
    return _moved(g, value, perm)


def swap(rank: int) -> tuple[int, ...]:
    """The permutation that swaps the last two of ``rank`` axes."""
    return (*range(rank - 2), rank - 1, rank - 2)


def _moved(g: Builder, value: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    if perm == tuple(range(len(perm))):
        return value
    shape = [list(value.shape or ())[i] for i in perm]
    return g.op("Transpose", value, perm=list(perm), dtype=value.dtype, shape=shape)


def _text(body: str, inputs: str = "float[B,S,4,16] q, float[B,T,4,16] k") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g ({inputs}) => (float[B,S,T,4] y)
<float scale = {{0.25}}, float[B,4,S,16] qt, float[B,4,16,T] kt, float[B,4,S,T] s, float[B,S,T,4] turned> {{
{body}
}}"""


_SCORES = """  qt = Transpose <perm = [0, 2, 1, 3]> (q)
  kt = Transpose <perm = [0, 2, 3, 1]> (k)
  s = MatMul (qt, kt)
  turned = Transpose <perm = [0, 2, 3, 1]> (s)
"""
SoftmaxAxis.examples = (
    Example(text=_text(_SCORES + "  y = Softmax <axis = 2> (turned)"), fires=1, emits={"Softmax": 1}),
    Example(
        text=_text(_SCORES + "  x = Mul (turned, scale)\n  y = Softmax <axis = 2> (x)"), fires=1, emits={"Softmax": 1}
    ),
    Example(text=_text(_SCORES + "  y = Softmax <axis = -1> (turned)"), because="no-match"),
    Example(
        text=_text("  y = Softmax <axis = 2> (x)", "float[B,S,T,4] x"),
        because="no-match",
    ),
)
