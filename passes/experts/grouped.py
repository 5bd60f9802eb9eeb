"""EXP001: a mixture of experts in grouped products, to the project's own operator."""

from __future__ import annotations

from typing import ClassVar, Final

import onnx_ir as ir

from .. import canonical_experts
from ..canonical_experts import GroupedNode
from ..graph import Builder
from ..look import no_match, past_casts
from ..rule import Context, Declined, Example, Replacement, Rule
from .example_texts import WOVEN, grouped_text
from .gate import Source
from .look import comes_from, leads_to
from .mixture import EMITS, OP, Mixture, mixture_at, replacement, require_target
from .routing import sorted_by

__all__ = ["SortedExperts"]

_GROUPED: Final = f"deployml.canonical::{canonical_experts.NAME}"


class SortedExperts(Rule):
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
    name: ClassVar[str] = "sorted-experts"
    anchors: ClassVar[frozenset[str]] = frozenset({_GROUPED})
    emits: ClassVar[tuple[str, ...]] = EMITS

    def examine(self, node: ir.Node, context: Context) -> Mixture:
        """See :class:`SortedExperts`."""
        second = canonical_experts.read(node)
        if leads_to(second.output, lambda other: _beside(other, second)) is not None:
            raise no_match("the first product of a pair")
        if comes_from(second.rows, lambda other: _beside(other, second)) is None:
            raise Declined("not-a-pair", "a grouped product that no other one feeds", at=node)
        require_target(node, context)
        order = sorted_by(second.ends)
        if order is None:
            raise Declined("routing", "the rows of the product are not sorted by expert", at=node)
        return mixture_at(node, second.output, _source(second), order, lambda value: _product(value, second))

    def build(self, facts: Mixture, g: Builder) -> Replacement:
        """See :class:`SortedExperts`."""
        return replacement(facts, g)


def _source(site: GroupedNode) -> Source:
    return Source(site.rows, site.weight, site.transposed, None)


def _product(value: ir.Value, second: GroupedNode) -> Source | None:
    node = past_casts(value).producer()
    return _source(canonical_experts.read(node)) if node is not None and _beside(node, second) else None


def _beside(node: ir.Node, other: GroupedNode) -> bool:
    """Whether a node is a grouped product over the same groups."""
    return canonical_experts.is_grouped(node) and node.inputs[2] is other.ends


SortedExperts.examples = (
    Example(text=grouped_text(), fires=1, emits={f"{OP}_silu_gated": 1, _GROUPED: 0}),
    Example(
        text=grouped_text(between="r = Relu (h) a = Mul (r, r)", tokens=5, gated=False),
        fires=1,
        emits={f"{OP}_relu_squared": 1},
    ),
    Example(text=grouped_text(between=WOVEN, stored=True, bias=True), fires=1, emits={f"{OP}_silu_gated_bias": 1}),
    Example(text=grouped_text(between="a = Tanh (h)", gated=False), because="activation"),
    Example(text=grouped_text(dtype="double"), because="dtype"),
    Example(text=grouped_text(normed=True), because="routing"),
    Example(text=grouped_text(between=WOVEN), because="weights"),
)
