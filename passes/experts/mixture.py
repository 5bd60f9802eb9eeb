"""A mixture of experts as the rules hand it over, and the node that it becomes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from ...custom_ops import DOMAIN, library_path
from ...custom_ops.mixture_of_experts import NAME, Signature, signatures
from ...custom_ops.mixture_of_experts.body import OLDEST_OPSET
from ..graph import Builder, producer
from ..look import opset, past_casts
from ..rule import Context, Declined, Draw, Replacement
from .gate import Between, Part, Source, between
from .routing import Order, Sorted, by_bias, tokens, way_back

__all__ = [
    "DTYPES",
    "EMITS",
    "OP",
    "Mixture",
    "Product",
    "cast",
    "flat_tokens",
    "mixture_at",
    "replacement",
    "require_target",
]

#: The operator without its signature.
OP: Final = f"{DOMAIN}::{NAME}"
#: Every name it has.
EMITS: Final = tuple(f"{DOMAIN}::{s.op_type}" for s in signatures())

#: Types it runs with.
DTYPES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

#: Finds the product, without a bias, that a value is.
Product = Callable[[ir.Value], Source | None]


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture of experts: the operator's inputs, weights still as the graph stores them.

    Attributes:
        x: (N, H), or with other axes before the last.
        experts: (N, K), int64.
        weights: (N, K).
        between: First product or products, and what follows them.
        outer: Weight of the second product, (E, I, H), or (E, H, I) with ``transposed``.
        transposed: Which of the two.
        bias: (E, H), or None.
        output: What is replaced, (N, H).
        relied_on: Constants that the order was made with.
        restored: Whether no row was ever moved.
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
    restored: bool

    @property
    def dtype(self) -> ir.DataType:
        """The type of the weights, in which the operator runs."""
        assert self.outer.dtype is not None
        return self.outer.dtype

    @property
    def width(self) -> int:
        """H."""
        size = None if self.x.shape is None else self.x.shape[-1]
        assert isinstance(size, int)
        return size

    @property
    def parts(self) -> tuple[Part, ...]:
        """What the rows of the first weight are made of, in the operator's order."""
        return (self.between.gate,) if self.between.value is None else (self.between.gate, self.between.value)


def require_target(node: ir.Node, context: Context) -> None:
    """Decline where the operator cannot be used, whatever the graph.

    Raises:
        Declined: "no-capability", "no-library" or "opset".
    """
    target = context.target
    if target.name != "cpu":
        raise Declined("no-capability", f"target {target.name} has no {DOMAIN}::{NAME}", at=node)
    if library_path("cpu") is None:
        raise Declined("no-library", f"the library of {NAME} is not built here, so it cannot be proven", at=node)
    if opset(context) < OLDEST_OPSET:
        raise Declined("opset", f"the function body needs opset {OLDEST_OPSET}, found {opset(context)}", at=node)


def _require_dtype(dtype: ir.DataType | None, node: ir.Node) -> None:
    if dtype not in DTYPES:
        found = "an unknown type" if dtype is None else dtype.name
        raise Declined("dtype", f"{DOMAIN}::{NAME} does not run with {found}", at=node)


def mixture_at(node: ir.Node, output: ir.Value, second: Source, order: Order, product: Product) -> Mixture:
    """Read the mixture around a second product.

    Args:
        node: Where the rule was called.
        output: The rows that the product gives.
        second: The product.
        order: The order of its rows.
        product: Finds a first product over the same rows.

    Raises:
        Declined: "activation", "routing", "dtype" or "weights".
    """
    found = between(second.rows, lambda value: _with_bias(value, product, order))
    if found is None:
        last = past_casts(second.rows).producer()
        what = "nothing" if last is None else last.op_type
        raise Declined("activation", f"the experts end in {what}, in no activation that is known", at=node)
    x = tokens(found.gate.source.rows, order)
    if x is None:
        raise Declined("routing", "the rows of the first product are not tokens by the order of experts", at=node)
    dtype = second.weight.dtype
    if dtype is None or dtype not in DTYPES:
        kind = "an unknown type" if dtype is None else dtype.name
        raise Declined("dtype", f"{OP} does not run with {kind}", at=node)
    way = way_back(output, order)
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
        output=_cast_back(way.output, dtype),
        relied_on=order.constants,
        restored=order.places is None,
    )
    _require_weights(facts, node)
    return facts


def _with_bias(value: ir.Value, product: Product, order: Order) -> Source | None:
    """The product that a value is, with its bias by expert."""
    value = past_casts(value)
    add = producer(value, "Add")
    if add is None:
        return product(value)
    for h, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        found = None if h is None or bias is None else product(past_casts(h))
        table = None if found is None or bias is None else by_bias(bias, order, restored=order.places is None)
        if found is not None and table is not None:
            return dataclasses.replace(found, bias=table)
    return None


def replacement(facts: Mixture, g: Builder) -> Replacement:
    """The operator in the place of the mixture."""
    for value in facts.relied_on:
        g.relies_on(value)
    biases = [part.source.bias for part in facts.parts]
    signature = Signature(
        activation=facts.between.activation,
        gated=facts.between.value is not None,
        bias=facts.bias is not None or any(b is not None for b in biases),
    )
    dtype = facts.dtype
    x, weights = flat_tokens(cast(facts.x, dtype, g), g), cast(facts.weights, dtype, g)
    outer = facts.outer if facts.transposed else g.op("Transpose", facts.outer, perm=[0, 2, 1])
    experts = _slots(facts.experts, g)
    weights = _slots(weights, g)
    given = {"x": x, "experts": experts, "weights": weights, "inner": _inner(facts, g), "outer": outer}
    if signature.bias:
        given |= {"inner_bias": _inner_bias(facts, g), "outer_bias": _bias(facts.bias, facts, facts.width, g)}
    numbers = {name: getattr(facts.between.attributes, name) for name in signature.attributes}
    made = g.op(
        f"{DOMAIN}::{signature.op_type}",
        *[given[name] for name in signature.inputs],
        dtype=dtype,
        shape=facts.output.shape,
        **numbers,
    )
    return Replacement(old=[facts.output], new=[made], draws=_draws(facts), few=facts.restored)


def cast(value: ir.Value, dtype: ir.DataType, g: Builder) -> ir.Value:
    """A value in another type; itself where it has that type."""
    return value if value.dtype == dtype else g.op("Cast", value, to=int(dtype), dtype=dtype, shape=value.shape)


def flat_tokens(x: ir.Value, g: Builder) -> ir.Value:
    """(N, H) of (..., H)."""
    shape = list(x.shape or ())
    return x if len(shape) == 2 else g.op("Reshape", x, g.const(np.array([-1, shape[-1]], np.int64)))


def _slots(value: ir.Value, g: Builder) -> ir.Value:
    """(N, K), also for one expert a token."""
    return value if len(value.shape or ()) == 2 else g.op("Unsqueeze", value, g.const(np.array([1], np.int64)))


def _met(way: Sorted) -> str:
    node = way.output.producer()
    return "the experts" if node is None else f"{node.op_type} '{node.name}'"


def _cast_back(output: ir.Value, dtype: ir.DataType) -> ir.Value:
    """The result in the type of the weights: of a sum in a wider type that is cast back, the cast."""
    readers = [use.node for use in output.uses()]
    if output.dtype == dtype or output.is_graph_output() or len(readers) != 1 or readers[0].op_type != "Cast":
        return output
    return readers[0].outputs[0]


def _require_weights(facts: Mixture, node: ir.Node) -> None:
    dtype = facts.dtype
    if facts.output.dtype != dtype:
        raise Declined("dtype", f"the sum stays {facts.output.dtype}, the weights are {dtype}", at=node)
    sizes = (*(facts.outer.shape or (None,)), list(facts.x.shape or (None,))[-1])
    if not all(isinstance(size, int) for size in sizes):
        raise Declined("weights", f"the sizes of the experts are not fixed: {facts.outer.shape}", at=node)
    read = [*(v for p in facts.parts for v in (p.source.weight, p.source.bias)), facts.bias]
    if any(value is not None and value.dtype != dtype for value in read):
        raise Declined("dtype", "weights and biases have different types", at=node)
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
        axis, piece = 1 if part.source.transposed else 2, part.source.weight
        pieces.append(piece if part.whole else g.op("Gather", piece, g.const(part.columns.astype(np.int64)), axis=axis))
    if len({part.source.transposed for part in facts.parts}) == 1:
        joined = g.op("Concat", *pieces, axis=1 if first.transposed else 2)
        return joined if first.transposed else g.op("Transpose", joined, perm=[0, 2, 1])
    turned = zip(pieces, facts.parts, strict=True)
    sources = [p if part.source.transposed else g.op("Transpose", p, perm=[0, 2, 1]) for p, part in turned]
    return g.op("Concat", *sources, axis=1)


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
    assert facts.outer.shape is not None
    return g.const(ir.tensor(np.zeros((facts.outer.shape[0], width), facts.dtype.numpy()), dtype=facts.dtype))


def _draws(facts: Mixture) -> tuple[tuple[ir.Value, Draw], ...]:
    """Experts from all there are; weights that keep the activation where it bends, and reach the limit."""
    assert facts.outer.shape is not None
    count, width = facts.outer.shape[0], facts.width
    inside = len(facts.parts[0].columns)
    assert isinstance(count, int)
    limit = facts.between.attributes.limit
    spread = limit / 2 if 0 < limit < math.inf else 2
    return (
        (facts.experts, Draw(below=count)),
        *((part.source.weight, Draw(deviation=spread / width**0.5)) for part in facts.parts),
        (facts.outer, Draw(deviation=1 / inside**0.5)),
    )
