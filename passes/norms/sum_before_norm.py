"""NRM007: a residual sum before a norm, written as one Sum."""

from __future__ import annotations

from typing import ClassVar

from ..example_text import declines, fires
from ..graph import Builder
from ..residual import Form
from ..rule import Replacement
from .skip import SkipFacts, SkipNorm

__all__ = ["SumBeforeNorm"]


class SumBeforeNorm(SkipNorm):
    """A residual sum followed by a norm, where plain operators are the fastest form.

    ## What it finds
    ``Add``, or ``Add`` of a bias and ``Add``, before ``LayerNormalization`` or ``SimplifiedLayerNormalization``, where
    the project's own operator is not to be had.

    ## Why
    From onnxruntime 1.30 on, SkipLayerNormalization takes five times as long on the CPU as the sum and the norm, and
    onnxruntime's optimizer makes one of every ``Add`` before a ``LayerNormalization`` as it loads a model. A ``Sum`` it
    leaves alone, and it takes in the bias.

    ## Before -> After
    ``Add, Add, LayerNormalization`` -> ``Sum, LayerNormalization``.

    ## When it declines
    * ``axis``, ``broadcast``, ``weight-shape``: what onnxruntime's optimizer would not fuse either; ``broadcast`` is
      said where own-skip-norm does not say it.
    * ``dtype``: the target has no kernel for the element type.
    * ``slower``: targets where onnxruntime's fused operator is the better form.

    ## Numerics
    ROUNDING: bias and skip may be added in another order.

    ## References
    onnxruntime, core/optimizer/skip_layer_norm_fusion.cc. ONNX operator Sum-13.
    """

    code: ClassVar[str] = "NRM007"
    name: ClassVar[str] = "sum-before-norm"
    op: ClassVar[str] = "Sum"
    form: ClassVar[Form] = "sum"
    sums: ClassVar[tuple[str, ...]] = ("Add",)
    anchors: ClassVar[frozenset[str]] = frozenset({"LayerNormalization", "SimplifiedLayerNormalization"})
    emits: ClassVar[tuple[str, ...]] = ("Sum",)

    def build(self, facts: SkipFacts, g: Builder) -> Replacement:
        """See :class:`SumBeforeNorm`."""
        given = [v for v in (facts.parts.x, facts.parts.skip, facts.parts.bias) if v is not None]
        total = g.op("Sum", *given, dtype=facts.dtype, shape=facts.total.shape)
        return Replacement(old=[facts.total], new=[total])


SumBeforeNorm.examples = (
    fires(
        "float[B,S,8] x, float[B,S,8] skip",
        "float[B,S,8] y, float[B,S,8] z",
        "b = Add (x, w) t = Add (b, skip) y = LayerNormalization <axis = -1> (t, w, w) z = Neg (t)",
        emits={"Sum": 1, "Add": 0, "LayerNormalization": 1},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    fires(
        "float[2,3,8] x, float[3,8] skip",
        "float[2,3,8] y",
        "t = Add (skip, x) y = SimplifiedLayerNormalization <axis = 2> (t, w)",
        emits={"Sum": 1, "Add": 0},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    declines(
        "float[B,S,8] x, float[B,1,8] skip",
        "float[B,S,8] y",
        "t = Add (x, skip) y = LayerNormalization <axis = -1> (t, w)",
        because="no-match",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    declines(
        "float[B,S,8] x, float[B,S,8] skip",
        "float[B,S,8] y",
        "t = Add (x, skip) y = LayerNormalization <axis = -1> (t, w)",
        because="slower",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
)
