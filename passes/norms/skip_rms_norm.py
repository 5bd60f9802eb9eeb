"""NRM004: a residual sum and the root-mean-square norm that reads it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from .skip import SkipFacts, SkipNorm

__all__ = ["SkipRmsNorm"]


class SkipRmsNorm(SkipNorm):
    """A residual sum followed by root-mean-square normalisation.

    ## What it finds
    ``SimplifiedLayerNormalization(a + b)`` over the last axis of a rank-3 sum, where one side may itself be
    ``c + bias`` with a vector that nothing else needs.

    ## Why
    The sum is formed in registers instead of being written and read again; the fourth output hands it to the
    next residual. onnxruntime does not do this for graphs of torch's exporter.

    ## Before -> After
    ``Add, SimplifiedLayerNormalization`` -> ``com.microsoft::SkipSimplifiedLayerNormalization``.

    ## When it declines
    * ``axis``, ``rank``: not the last axis of a rank-3 tensor.
    * ``broadcast``: neither side provably has the shape of the sum, or the other is not
      (B, S, H), (1, S, H) or (S, H).
    * ``weight-shape``: the weight is no vector of the element type.
    * ``dtype``: the target has no kernel for the element type.
    * ``slower``: onnxruntime 1.30 and newer on the CPU, where a ``Sum`` and the norm are faster (NRM007).

    ## Numerics
    ROUNDING: the same sums; bias and skip may be added in another order.

    ## References
    onnxruntime contrib operator SkipSimplifiedLayerNormalization.
    """

    code: ClassVar[str] = "NRM004"
    name: ClassVar[str] = "skip-rms-norm"
    op: ClassVar[str] = "SkipSimplifiedLayerNormalization"
    anchors: ClassVar[frozenset[str]] = frozenset({"SimplifiedLayerNormalization"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::SkipSimplifiedLayerNormalization",)

    def inputs_of(self, facts: SkipFacts) -> tuple[ir.Value | None, ...]:
        """See :class:`SkipRmsNorm`."""
        return facts.parts.x, facts.parts.skip, facts.gamma, facts.parts.bias


SkipRmsNorm.examples = (
    fires(
        "float[B,S,8] x, float[B,S,8] skip",
        "float[B,S,8] y, float[B,S,8] z",
        ("t = Add (skip, x) y = SimplifiedLayerNormalization <axis = -1, epsilon = 0.001> (t, w) z = Neg (t)"),
        emits={"com.microsoft::SkipSimplifiedLayerNormalization": 1, "Add": 0},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    fires(
        "float[2,3,8] x, float[1,3,8] skip",
        "float[2,3,8] y",
        "t = Add (x, skip) y = SimplifiedLayerNormalization <axis = 2> (t, w)",
        emits={"com.microsoft::SkipSimplifiedLayerNormalization": 1},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    declines(
        "float[B,S,8] x, float[B,S,1] skip",
        "float[B,S,8] y",
        "t = Add (x, skip) y = SimplifiedLayerNormalization <axis = -1> (t, w)",
        because="broadcast",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    declines(
        "float[S,8] x, float[S,8] skip",
        "float[S,8] y",
        "t = Add (x, skip) y = SimplifiedLayerNormalization <axis = -1> (t, w)",
        because="rank",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    declines(
        "float[B,S,8] x, float[B,S,8] skip",
        "float[B,S,8] y",
        "t = Add (x, skip) y = SimplifiedLayerNormalization <axis = -1> (t, w)",
        because="slower",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
)
