"""ACT003: a bias and the exact GELU that reads it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ..graph import Builder
from ..look import no_match
from ..rule import Context, Example, Replacement, Rule
from .bias import BiasedGelu, approximation, biased_gelu

__all__ = ["BiasGelu"]


class BiasGelu(Rule):
    """A bias added before the exact GELU.

    ## What it finds
    ``Gelu(x + bias)`` of the erf form, with a constant vector along the last axis.

    ## Why
    One pass over the widest tensor of a transformer block instead of two.

    ## Before -> After
    ``Add, Gelu`` -> ``com.microsoft::BiasGelu``. Never for the tanh form: that operator has no such
    attribute and would silently compute the erf form.

    ## When it declines
    * ``bias-shape``: the vector is not one constant a feature.
    * ``sum-read-elsewhere``: something else needs the sum.
    * ``dtype``: the target has no kernel for the element type.

    ## Numerics
    ROUNDING: the same function in another order of products.

    ## References
    onnxruntime contrib operator BiasGelu.
    """

    code: ClassVar[str] = "ACT003"
    name: ClassVar[str] = "bias-gelu"
    anchors: ClassVar[frozenset[str]] = frozenset({"Gelu", "com.microsoft::Gelu"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::BiasGelu",)
    examples: ClassVar[tuple[Example, ...]] = ()

    def examine(self, node: ir.Node, context: Context) -> BiasedGelu:
        """See :class:`BiasGelu`."""
        if approximation(node) != "none":
            raise no_match("the tanh form")
        return biased_gelu(node, context, "BiasGelu")

    def build(self, facts: BiasedGelu, g: Builder) -> Replacement:
        """See :class:`BiasGelu`."""
        gelu = g.op("com.microsoft::BiasGelu", facts.x, facts.bias, dtype=facts.dtype, shape=facts.x.shape)
        return Replacement(old=[facts.output], new=[gelu])
