"""EXP002: a mixture of experts that gathers a weight for each row, to the project's own operator."""

from __future__ import annotations

import math
from typing import ClassVar, Final

import onnx_ir as ir

from ..graph import Builder, attribute, dims, op_name, producer
from ..look import no_match, past_casts
from ..rule import Context, Declined, Example, Replacement, Rule
from .example_texts import WOVEN, gathered_text
from .gate import Source
from .look import comes_from, gathered, onwards, rank
from .mixture import EMITS, OP, Mixture, mixture_at, replacement, require_target
from .routing import Order, by_slot

__all__ = ["GatheredExperts"]

#: The proof runs the form that is replaced on 21 tokens: weights of more numbers for one of them are not gathered.
_LARGEST: Final = 1 << 25


class GatheredExperts(Rule):
    """A mixture of experts in which each row meets a copy of its expert's weight.

    ## What it finds
    Each token repeated for each of its experts, weights gathered by expert, a batched product of single rows, an
    activation with or without a gate, a second such product, the routing weights, and the sum over the experts of
    each token. Gates, bounds and biases by expert are those of EXP001.

    ## Why
    A copy of a weight is made for each token and expert: a hundred tokens gather a hundred times two matrices. The
    operator reads each weight where it lies.

    ## Before -> After
    ``Expand, GatherND, MatMul, Squeeze, QuickGelu, Mul, GatherND, MatMul, Mul, ReduceSum`` ->
    ``deployml::MixtureOfExperts_silu_gated(x, experts, weights, inner, outer)``.

    ## When it declines
    As EXP001 does, and ``too-large`` where the form that is replaced could not be run for the proof.

    ## Numerics
    ROUNDING: float32 inside, rounded once. Routing weights of a wider type are rounded to that of the tokens.

    ## References
    Shazeer and others, Outrageously Large Neural Networks, 2017.
    """

    code: ClassVar[str] = "EXP002"
    name: ClassVar[str] = "gathered-experts"
    anchors: ClassVar[frozenset[str]] = frozenset({"MatMul"})
    emits: ClassVar[tuple[str, ...]] = EMITS

    def examine(self, node: ir.Node, context: Context) -> Mixture:
        """See :class:`GatheredExperts`."""
        found = _read(node)
        if found is None:
            raise no_match()
        second, order = found
        rows = _rows_after(node)
        before = _first_product(second.rows, order)
        if rows is None or not before:
            raise no_match("the first product of a pair, or one alone")
        require_target(node, context)
        numbers = max(_numbers(second), _numbers(before)) * order.each
        if numbers > _LARGEST:
            raise Declined("too-large", f"a token gathers {numbers} numbers", at=node)
        return mixture_at(node, rows, second, order, lambda value: _product(value, order))

    def build(self, facts: Mixture, g: Builder) -> Replacement:
        """See :class:`GatheredExperts`."""
        return replacement(facts, g)


def _read(node: ir.Node) -> tuple[Source, Order] | None:
    """A product of single rows with weights gathered by expert, and the order of the rows."""
    for place in (0, 1):
        weight, other = node.inputs[place], node.inputs[1 - place]
        found = None if weight is None else _gathered(weight)
        order = None if found is None else by_slot(found[1])
        shape = dims(other)
        if found is None or order is None or other is None or shape is None or len(shape) != 3:
            continue
        if shape[2 - place] == 1:  # W @ column, or row @ W
            return Source(_row(other), found[0], (place == 0) is not found[2], None), order
    return None


def _gathered(weight: ir.Value) -> tuple[ir.Value, ir.Value, bool] | None:
    """(table of three axes, index, whether what was gathered was transposed)."""
    weight = past_casts(weight)
    node = producer(weight, "Transpose")
    turned = node is not None and tuple(attribute(node, "perm", ())) == (0, 2, 1)
    found = gathered(node.inputs[0] if turned and node is not None and node.inputs[0] is not None else weight)
    if found is None or rank(found[0]) != 3 or found[0].const_value is None:
        return None
    return found[0], found[1], turned


def _row(value: ir.Value) -> ir.Value:
    """x (S, D) when the value is x with one more axis."""
    node = producer(past_casts(value), "Unsqueeze", "Reshape")
    source = None if node is None or node.inputs[0] is None else past_casts(node.inputs[0])
    return source if source is not None and rank(source) == 2 else past_casts(value)


def _rows_after(node: ir.Node) -> ir.Value | None:
    """The rows of a product without the axis of size 1."""
    views = (n for n in onwards(node.outputs[0]) if op_name(n) in ("Squeeze", "Reshape"))
    return next((n.outputs[0] for n in views if rank(n.outputs[0]) == 2), None)


def _product(value: ir.Value, order: Order) -> Source | None:
    view = producer(value, "Squeeze", "Reshape")
    node = None if view is None or view.inputs[0] is None else producer(past_casts(view.inputs[0]), "MatMul")
    found = None if node is None else _read(node)
    return found[0] if found is not None and found[1].experts is order.experts else None


def _first_product(rows: ir.Value, order: Order) -> Source | None:
    def first(node: ir.Node) -> bool:
        return op_name(node) == "MatMul" and any(
            _product(v, order) for n in onwards(node.outputs[0]) for v in n.outputs
        )

    node = comes_from(rows, first)
    found = None if node is None else _read(node)
    return None if found is None else found[0]


def _numbers(source: Source) -> int:
    shape = source.weight.shape
    return 0 if shape is None else math.prod(size for size in list(shape)[1:] if isinstance(size, int))


GatheredExperts.examples = (
    Example(text=gathered_text(), fires=1, emits={f"{OP}_silu_gated": 1, "MatMul": 0}),
    Example(text=gathered_text(tokens=5, bias=True, between=WOVEN), fires=1, emits={f"{OP}_silu_gated_bias": 1}),
    Example(text=gathered_text(between="a = Tanh (h)", gated=False), because="activation"),
    Example(text=gathered_text(normed=True), because="routing"),
    Example(text=gathered_text(dtype="double"), because="dtype"),
)
