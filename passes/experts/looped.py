"""EXP003: a mixture of experts that a loop visits one after the other, to the project's own operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...custom_ops import DOMAIN
from ...custom_ops.mixture_of_experts import Signature
from ..graph import Builder, attribute, producer
from ..look import no_match, past_casts
from ..rule import Context, Declined, Draw, Example, Replacement, Rule
from .example_texts import looped_text
from .gate import Between, Source, between
from .look import rank
from .mixture import DTYPES, EMITS, OP, cast, flat_tokens, require_target
from .visits import Visit, rows_given, visits

__all__ = ["LoopedExperts"]


@dataclass(frozen=True, slots=True)
class _Expert:
    """One expert: its first products and what follows, and its second product."""

    between: Between
    outer: Source

    @property
    def parts(self) -> tuple[Source, ...]:
        """The first products, the gate before the value."""
        value = self.between.value
        return (self.between.gate.source, *([] if value is None else [value.source]))

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all experts of a mixture have in common."""
        weights = [(s.weight.shape, s.weight.dtype, s.transposed, s.bias is None) for s in (*self.parts, self.outer)]
        return (self.between.activation, self.between.attributes, str(weights))


@dataclass(frozen=True, slots=True)
class Facts:
    """A loop over experts.

    Attributes:
        x: (..., H).
        experts, weights: (..., K).
        each: The experts, by number.
        rest: What the loop adds to, or None.
        output: What is replaced.
        distinct: Whether the two are equal only as long as no token chooses an expert twice.
    """

    x: ir.Value
    experts: ir.Value
    weights: ir.Value
    each: tuple[_Expert, ...]
    rest: ir.Value | None
    output: ir.Value
    distinct: bool


class LoopedExperts(Rule):
    """A loop over experts, each a module of its own.

    ## What it finds
    A sum over experts, each of which is a first product (two for a gate), an activation and a second product. Either
    an expert is given the tokens that chose it (``where``, ``index_add``), or all of them, and what it gives is
    multiplied by ``sum(weights * (experts == e))`` or by a column of weights scattered among zeros.

    ## Why
    The graph has every expert's nodes; on all tokens it also does the work of all experts for each. The operator does
    that of the chosen ones.

    ## Before -> After
    ``NonZero, GatherND, Gemm, QuickGelu, Gemm, Mul, Gemm, Mul, ScatterND, NonZero, ...`` ->
    ``deployml::MixtureOfExperts_silu_gated(x, experts, weights, inner, outer)``. The weights of the experts are put
    together when the model is written.

    ## When it declines
    * ``no-capability``, ``no-library``, ``opset``, ``dtype``: as EXP001.
    * ``experts-differ``: the loop leaves a number out, or one expert is made otherwise than another.
    * ``activation``: what stands between the products is none the operator computes.
    * ``routing``: experts are given other tokens, or follow other weights, than each other.

    ## Numerics
    ROUNDING: float32 inside, rounded once. An expert that a token did not choose adds nothing, also where it would
    give an infinity that a weight of 0 makes NaN.

    ## References
    Shazeer and others, Outrageously Large Neural Networks, 2017.
    """

    code: ClassVar[str] = "EXP003"
    name: ClassVar[str] = "looped-experts"
    anchors: ClassVar[frozenset[str]] = frozenset({"ScatterND", "Add"})
    emits: ClassVar[tuple[str, ...]] = EMITS

    def examine(self, node: ir.Node, context: Context) -> Facts:
        """See :class:`LoopedExperts`."""
        found = visits(node)
        if found is None or len(found[0]) < 2:
            raise no_match()
        require_target(node, context)
        visited, rest = sorted(found[0], key=lambda v: v.number), found[1]
        if [v.number for v in visited] != list(range(len(visited))):
            raise Declined("experts-differ", f"the loop visits {[v.number for v in visited]}", at=node)
        first = visited[0]
        if any(v.experts is not first.experts or v.weights is not first.weights for v in visited):
            raise Declined("routing", "experts follow different weights", at=node)
        x, each = _experts(visited, node)
        if len({expert.kind for expert in each}) > 1:
            raise Declined("experts-differ", "one expert is made otherwise than another", at=node)
        dtype = each[0].outer.weight.dtype
        if dtype not in DTYPES or node.outputs[0].dtype != dtype or x.dtype != dtype:
            raise Declined("dtype", f"{OP} does not run with {dtype}, or the tokens have another type", at=node)
        ranks = {rank(x), rank(first.experts), rank(first.weights)}
        if rank(node.outputs[0]) != rank(x) or (len(ranks) > 1 and rank(x) != 2):
            raise Declined("routing", "tokens, experts and weights have other axes than each other", at=node)
        return Facts(x, first.experts, first.weights, tuple(each), rest, node.outputs[0], first.distinct)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        """See :class:`LoopedExperts`."""
        first = facts.each[0]
        biased = any(source.bias is not None for source in (*first.parts, first.outer))
        signature = Signature(activation=first.between.activation, gated=first.between.value is not None, bias=biased)
        dtype = first.outer.weight.dtype
        assert dtype is not None
        axes = rank(facts.x)
        given = {
            "x": facts.x,
            "experts": _flat(facts.experts, axes, g),
            "weights": _flat(cast(facts.weights, dtype, g), axes, g),
            "inner": _stacked([expert.parts for expert in facts.each], g),
            "outer": _stacked([(expert.outer,) for expert in facts.each], g),
        }
        if biased:
            given["inner_bias"] = _biases([expert.parts for expert in facts.each], dtype, g)
            given["outer_bias"] = _biases([(expert.outer,) for expert in facts.each], dtype, g)
        numbers = {name: getattr(first.between.attributes, name) for name in signature.attributes}
        made = g.op(
            f"{DOMAIN}::{signature.op_type}",
            *[given[name] for name in signature.inputs],
            dtype=dtype,
            shape=facts.x.shape,
            **numbers,
        )
        result = made if facts.rest is None else g.op("Add", facts.rest, made, dtype=dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[result], draws=_draws(facts))


def _flat(value: ir.Value, axes: int | None, g: Builder) -> ir.Value:
    """(..., K) with as many axes as the tokens have."""
    return value if rank(value) == axes else flat_tokens(value, g)


def _experts(visited: list[Visit], node: ir.Node) -> tuple[ir.Value, list[_Expert]]:
    """The tokens that all experts are given, and the experts."""
    tokens: ir.Value | None = None
    each = []
    for visit in visited:
        outer = _linear(visit.output)
        found = None if outer is None else between(outer.rows, _linear)
        if outer is None or found is None or not found.gate.whole or not (found.value is None or found.value.whole):
            raise Declined("activation", f"expert {visit.number} is no pair of products with an activation", at=node)
        source = found.gate.source
        x = rows_given(source.rows, visit, _width(source))
        if x is None or (tokens is not None and x is not tokens):
            raise Declined("routing", f"expert {visit.number} is given other tokens than those that chose it", at=node)
        tokens = x
        each.append(_Expert(found, outer))
    assert tokens is not None
    return tokens, each


def _linear(value: ir.Value) -> Source | None:
    """A product with a constant matrix, and its bias."""
    value = past_casts(value)
    node = producer(value, "MatMul", "Gemm", "Add")
    if node is None:
        return None
    if node.op_type == "Add":
        for h, bias in (tuple(node.inputs), tuple(node.inputs)[::-1]):
            inner = None if h is None or producer(past_casts(h), "MatMul") is None else _linear(h)
            if inner is not None and inner.bias is None and _constant(bias, 1):
                return Source(inner.rows, inner.weight, inner.transposed, bias)
        return None
    rows, weight, *bias = node.inputs
    scaled = attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0
    if scaled or attribute(node, "transA", 0) or rows is None or weight is None or not _constant(weight, 2):
        return None
    if bias and bias[0] is not None and not _constant(bias[0], 1):
        return None
    return Source(past_casts(rows), weight, bool(attribute(node, "transB", 0)), bias[0] if bias else None)


def _constant(value: ir.Value | None, axes: int) -> bool:
    return value is not None and value.const_value is not None and rank(value) == axes


def _width(source: Source) -> int:
    shape = source.weight.shape
    size = None if shape is None else shape[1 if source.transposed else 0]
    return size if isinstance(size, int) else -1


def _stacked(experts: list[tuple[Source, ...]], g: Builder) -> ir.Value:
    """(E, F, D) of the matrices of each expert, one below the other; stored so, not computed at run time."""
    sources = [source for expert in experts for source in expert]
    if sources[0].transposed:
        rows = g.op("Concat", *[s.weight for s in sources], axis=0)
    else:
        rows = g.op("Transpose", g.op("Concat", *[s.weight for s in sources], axis=1), perm=[1, 0])
    return g.op("Reshape", rows, g.const(np.array([len(experts), -1, _width(sources[0])], np.int64)))


def _biases(experts: list[tuple[Source, ...]], dtype: ir.DataType, g: Builder) -> ir.Value:
    """(E, F) of the biases of each expert, zeros for those without."""
    pieces = []
    for source in (source for expert in experts for source in expert):
        shape = source.weight.shape
        assert shape is not None
        size = shape[0 if source.transposed else 1]
        zeros = None if source.bias is not None else g.const(ir.tensor(np.zeros(size, dtype.numpy()), dtype=dtype))
        pieces.append(source.bias if source.bias is not None else zeros)
    joined = g.op("Concat", *pieces, axis=0)
    return g.op("Reshape", joined, g.const(np.array([len(experts), -1], np.int64)))


def _draws(facts: Facts) -> tuple[tuple[ir.Value, Draw], ...]:
    sources = [source for expert in facts.each for source in (*expert.parts, expert.outer)]
    spread = tuple((s.weight, Draw(deviation=2 / max(_width(s), 1) ** 0.5)) for s in sources)
    return ((facts.experts, Draw(below=len(facts.each), distinct=facts.distinct)), *spread)


LoopedExperts.examples = (
    Example(text=looped_text(), fires=1, emits={f"{OP}_silu_gated": 1, "ScatterND": 0, "Gemm": 0}),
    Example(text=looped_text(chosen=False, tokens=5), fires=1, emits={f"{OP}_silu_gated": 1, "MatMul": 0}),
    Example(text=looped_text(activation="Tanh"), because="activation"),
    Example(text=looped_text(numbers=(0, 2)), because="experts-differ"),
)
