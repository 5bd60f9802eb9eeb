"""EXP001: a mixture of experts in grouped products, to the project's own operator."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_ir as ir

from ...custom_ops import DOMAIN, library_path
from ...custom_ops.mixture_of_experts import NAME, Signature, signatures
from ...custom_ops.mixture_of_experts.body import OLDEST_OPSET
from .. import canonical_experts
from ..canonical_experts import GroupedNode
from ..graph import Builder, producer
from ..look import no_match, opset, past_casts
from ..rule import Context, Declined, Draw, Example, Replacement, Rule
from .example_texts import WOVEN, grouped_text
from .gate import Between, Part, Source, between
from .look import comes_from, leads_to
from .routing import Order, Sorted, by_bias, sorted_by, tokens, way_back

__all__ = ["Mixture", "MixtureOfExperts"]

_GROUPED: Final = f"deployml.canonical::{canonical_experts.NAME}"
_DTYPES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of experts: the operator's inputs, weights still as the graph stores them.

    Attributes:
        x: (N, H).
        experts: (N, K), int64.
        weights: (N, K).
        between: First product or products, and what follows them.
        outer: Weight of the second product, (E, I, H), or (E, H, I) with ``transposed``.
        transposed: Which of the two.
        bias: (E, H), or None.
        output: What is replaced, (N, H).
        relied_on: Constants that the order was made with.
    """

    x: ir.Value
    experts: ir.Value
    weights: ir.Value
    between: Between
    outer: ir.Value
    transposed: bool
    bias: ir.Value | None
    output: ir.Value
    relied_on: tuple[ir.Value, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the rows of the first weight are made of, in the operator's order."""
        return (self.between.gate,) if self.between.value is None else (self.between.gate, self.between.value)


class MixtureOfExperts(Rule):
    """A mixture of experts whose rows are sorted by expert.

    ## What it finds
    Tokens gathered in the order of their experts, a grouped product, an activation with or without a gate, a second
    grouped product, the routing weights, and the sum over the experts of each token, the order restored or the rows
    added where they belong. The gate may be the first half or every other column of the product, or a product of its
    own, bounded and with a number added to the value (gpt-oss); biases by expert are part of it.

    ## Why
    The graph has a slice and a product for each expert, and some thirty nodes that sort and restore. The operator
    sorts once, runs each expert on its own rows, activation and gate in the same pass, and makes no node for an
    expert without tokens. The model carries a function body of the same meaning, so that it also runs where the
    library is not loaded.

    ## Before -> After
    ``TopK, GatherND, Slice, MatMul, ..., QuickGelu, Mul, Slice, MatMul, ..., ScatterND, GatherND, ReduceSum`` ->
    ``deployml::MixtureOfExperts_silu_gated(x, experts, weights, inner, outer)``; the name has activation, gate and
    biases.

    ## When it declines
    * ``no-capability``: the target has no such operator.
    * ``no-library``: the operator library is not built here, so the rewrite cannot be proven.
    * ``dtype``, ``opset``: no kernel for the element type, no function body in the opset.
    * ``activation``: what stands between the products is none the operator computes.
    * ``routing``: rows are not tokens in the order of their experts, or something else is done to what comes out
      (a norm, say).
    * ``weights``: weights are computed, and would be put into another order at each run.
    * ``not-a-pair``: a grouped product without a second one.

    ## Numerics
    ROUNDING: float32 inside, rounded once, where half precision rounded after each product. Routing weights of a
    wider type are rounded to that of the tokens.

    ## References
    Shazeer and others, Outrageously Large Neural Networks, 2017; Shazeer, GLU Variants Improve Transformer, 2020.
    """

    code: ClassVar[str] = "EXP001"
    name: ClassVar[str] = "mixture-of-experts"
    anchors: ClassVar[frozenset[str]] = frozenset({_GROUPED})
    emits: ClassVar[tuple[str, ...]] = tuple(f"{DOMAIN}::{s.op_type}" for s in signatures())

    def examine(self, node: ir.Node, context: Context) -> Mixture:
        """See :class:`MixtureOfExperts`."""
        second = canonical_experts.read(node)
        if leads_to(second.output, lambda other: _beside(other, second)) is not None:
            raise no_match("the first product of a pair")
        _require_target(node, context)
        order = sorted_by(second.ends)
        if order is None:
            raise Declined("routing", "the rows of the product are not sorted by expert", at=node)
        found = between(second.rows, lambda value: _first(value, second, order))
        if found is None:
            raise _not_between(second)
        x = tokens(found.gate.source.rows, order)
        if x is None:
            raise Declined("routing", "the rows of the first product are not tokens by the order of experts", at=node)
        _require_dtype(x.dtype, node)
        way = way_back(second.output, order)
        if not way.done or way.weights is None:
            raise Declined("routing", f"after {_met(way)} comes nothing that is known", at=node)
        facts = Mixture(
            x=x,
            experts=order.experts,
            weights=way.weights,
            between=found,
            outer=second.weight,
            transposed=second.transposed,
            bias=way.bias,
            output=_cast_back(way.output, x),
            relied_on=order.constants,
        )
        _require_weights(facts, node)
        return facts

    def build(self, facts: Mixture, g: Builder) -> Replacement:
        """See :class:`MixtureOfExperts`."""
        for value in facts.relied_on:
            g.relies_on(value)
        biases = [part.source.bias for part in facts.parts]
        signature = Signature(
            activation=facts.between.activation,
            gated=facts.between.value is not None,
            bias=facts.bias is not None or any(b is not None for b in biases),
        )
        x, dtype = facts.x, facts.x.dtype
        weights = facts.weights if facts.weights.dtype == dtype else g.op("Cast", facts.weights, to=dtype)
        outer = facts.outer if facts.transposed else g.op("Transpose", facts.outer, perm=[0, 2, 1])
        given = {"x": x, "experts": facts.experts, "weights": weights, "inner": _inner(facts, g), "outer": outer}
        if signature.bias:
            given |= {"inner_bias": _inner_bias(facts, g), "outer_bias": _bias(facts.bias, facts, x.shape[1], g)}
        numbers = {name: getattr(facts.between.attributes, name) for name in signature.attributes}
        made = g.op(
            f"{DOMAIN}::{signature.op_type}",
            *[given[name] for name in signature.inputs],
            dtype=dtype,
            shape=facts.output.shape,
            **numbers,
        )
        return Replacement(old=[facts.output], new=[made], draws=_draws(facts))


def _require_target(node: ir.Node, context: Context) -> None:
    target = context.target
    if target.name != "cpu":
        raise Declined("no-capability", f"target {target.name} has no {DOMAIN}::{NAME}", at=node)
    if library_path("cpu") is None:
        raise Declined("no-library", f"the library of {NAME} is not built here, so it cannot be proven", at=node)
    if opset(context) < OLDEST_OPSET:
        raise Declined("opset", f"the function body needs opset {OLDEST_OPSET}, found {opset(context)}", at=node)


def _require_dtype(dtype: ir.DataType | None, node: ir.Node) -> None:
    if dtype not in _DTYPES:
        found = "an unknown type" if dtype is None else dtype.name
        raise Declined("dtype", f"{DOMAIN}::{NAME} does not run with {found}", at=node)


def _first(value: ir.Value, second: GroupedNode, order: Order) -> Source | None:
    """The product that a value is, with its bias by expert."""
    value = past_casts(value)
    add = producer(value, "Add")
    if add is not None:
        for h, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
            found = None if h is None or bias is None else _product(h, second)
            table = None if found is None or bias is None else by_bias(bias, order)
            if found is not None and table is not None:
                return Source(found.rows, found.weight, found.transposed, table)
    found = _product(value, second)
    return None if found is None else Source(found.rows, found.weight, found.transposed, None)


def _product(value: ir.Value, second: GroupedNode) -> GroupedNode | None:
    node = past_casts(value).producer()
    return canonical_experts.read(node) if node is not None and _beside(node, second) else None


def _beside(node: ir.Node, other: GroupedNode) -> bool:
    """Whether a node is a grouped product over the same groups."""
    return canonical_experts.is_grouped(node) and node.inputs[2] is other.ends


def _not_between(second: GroupedNode) -> Declined:
    node = second.rows.producer()
    if comes_from(second.rows, lambda node: _beside(node, second)) is None:
        return Declined("not-a-pair", "a grouped product that no other one feeds", at=second.node)
    what = "nothing" if node is None else node.op_type
    return Declined("activation", f"the experts end in {what}, in no activation that is known", at=second.node)


def _met(way: Sorted) -> str:
    node = way.output.producer()
    return "the experts" if node is None else f"{node.op_type} '{node.name}'"


def _cast_back(output: ir.Value, x: ir.Value) -> ir.Value:
    """The result in the type of the tokens: of a sum in a wider type that is cast back, the cast."""
    readers = [use.node for use in output.uses()]
    if output.dtype == x.dtype or output.is_graph_output() or len(readers) != 1 or readers[0].op_type != "Cast":
        return output
    return readers[0].outputs[0]


def _require_weights(facts: Mixture, node: ir.Node) -> None:
    if facts.output.dtype != facts.x.dtype:
        raise Declined("dtype", f"the sum stays {facts.output.dtype}, the tokens are {facts.x.dtype}", at=node)
    sizes = (*(facts.outer.shape or (None,)), *(facts.x.shape or (None,))[1:])
    if not all(isinstance(size, int) for size in sizes):
        raise Declined("weights", f"the sizes of the experts are not fixed: {facts.outer.shape}", at=node)
    if any(part.source.weight.dtype != facts.x.dtype for part in facts.parts) or facts.outer.dtype != facts.x.dtype:
        raise Declined("dtype", "tokens and weights have different types", at=node)
    stored = [facts.outer, *(part.source.weight for part in facts.parts)]
    ordered = facts.transposed and all(p.source.transposed for p in facts.parts) and _as_stored(facts)
    if not ordered and any(value.const_value is None for value in stored):
        raise Declined("weights", "the weights are computed, and not in the order of the operator", at=node)


def _as_stored(facts: Mixture) -> bool:
    """Whether the parts are one weight, in its own order."""
    first, *others = facts.parts
    chosen = np.concatenate([part.columns for part in facts.parts])
    same = all(part.source.weight is first.source.weight for part in others)
    return same and Part(first.source, chosen).whole


def _inner(facts: Mixture, g: Builder) -> ir.Value:
    """The first weight, (E, F, H), F in the operator's order. Constants are stored so, none is computed at run time."""
    first = facts.parts[0].source
    if _as_stored(facts):
        return first.weight if first.transposed else g.op("Transpose", first.weight, perm=[0, 2, 1])
    if all(part.source is first or part.source.weight is first.weight for part in facts.parts):
        chosen = np.concatenate([part.columns for part in facts.parts]).astype(np.int64)
        picked = g.op("Gather", first.weight, g.const(chosen), axis=1 if first.transposed else 2)
        return picked if first.transposed else g.op("Transpose", picked, perm=[0, 2, 1])
    pieces = []
    for part in facts.parts:
        piece = part.source.weight
        if not part.whole:
            piece = g.op(
                "Gather", piece, g.const(part.columns.astype(np.int64)), axis=1 if part.source.transposed else 2
            )
        pieces.append(piece if part.source.transposed else g.op("Transpose", piece, perm=[0, 2, 1]))
    return g.op("Concat", *pieces, axis=1)


def _inner_bias(facts: Mixture, g: Builder) -> ir.Value:
    first = facts.parts[0].source
    if _as_stored(facts):
        return _bias(first.bias, facts, len(facts.parts) * len(facts.parts[0].columns), g)
    pieces = []
    for part in facts.parts:
        columns = part.columns.astype(np.int64)
        bias = part.source.bias
        pieces.append(
            _bias(None, facts, len(columns), g) if bias is None else g.op("Gather", bias, g.const(columns), axis=1)
        )
    return g.op("Concat", *pieces, axis=1)


def _bias(bias: ir.Value | None, facts: Mixture, width: int, g: Builder) -> ir.Value:
    if bias is not None:
        return bias
    assert facts.outer.shape is not None and facts.x.dtype is not None
    return g.const(ir.tensor(np.zeros((facts.outer.shape[0], width), facts.x.dtype.numpy()), dtype=facts.x.dtype))


def _draws(facts: Mixture) -> tuple[tuple[ir.Value, Draw], ...]:
    """Experts from all there are; weights that keep the activation where it bends, and reach the limit."""
    assert facts.outer.shape is not None and facts.x.shape is not None
    count, width = facts.outer.shape[0], facts.x.shape[1]
    inside = len(facts.parts[0].columns)
    assert isinstance(count, int) and isinstance(width, int)
    limit = facts.between.attributes.limit
    spread = limit / 2 if 0 < limit < math.inf else 2
    return (
        (facts.experts, Draw(below=count)),
        *((part.source.weight, Draw(deviation=spread / width**0.5)) for part in facts.parts),
        (facts.outer, Draw(deviation=1 / inside**0.5)),
    )


_OP: Final = f"{DOMAIN}::{NAME}"

MixtureOfExperts.examples = (
    Example(text=grouped_text(), fires=1, emits={f"{_OP}_silu_gated": 1, _GROUPED: 0}),
    Example(
        text=grouped_text(between="r = Relu (h) a = Mul (r, r)", tokens=5, gated=False),
        fires=1,
        emits={f"{_OP}_relu_squared": 1},
    ),
    Example(text=grouped_text(between=WOVEN, stored=True, bias=True), fires=1, emits={f"{_OP}_silu_gated_bias": 1}),
    Example(text=grouped_text(between="a = Tanh (h)", gated=False), because="activation"),
    Example(text=grouped_text(dtype="double"), because="dtype"),
    Example(text=grouped_text(normed=True), because="routing"),
    Example(text=grouped_text(between=WOVEN), because="weights"),
)
