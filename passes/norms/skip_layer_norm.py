"""NRM003: a residual sum and the layer norm that reads it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from .skip import SkipFacts, SkipNorm

__all__ = ["SkipLayerNorm"]


class SkipLayerNorm(SkipNorm):
    """A residual sum followed by layer normalisation.

    ## What it finds
    ``LayerNormalization(a + b)`` over the last axis of a rank-3 sum, where one side may itself be
    ``c + bias`` with a vector that nothing else needs.

    ## Why
    The sum is formed in registers instead of being written and read again. Where the sum is read elsewhere
    too (pre-norm blocks) the operator hands it out as its fourth output.

    ## Before -> After
    ``Add, Add, LayerNormalization`` -> ``com.microsoft::SkipLayerNormalization``.

    ## When it declines
    * ``axis``, ``rank``: not the last axis of a rank-3 tensor.
    * ``broadcast``: neither side provably has the shape of the sum, or the other is not
      (B, S, H), (1, S, H) or (S, H).
    * ``weight-shape``: weight or bias of the norm is no vector of the element type.
    * ``dtype``: the target has no kernel for the element type.
    * ``slower``: onnxruntime 1.30 and newer on the CPU, where a ``Sum`` and the norm are faster (NRM007).

    ## Numerics
    ROUNDING: the same sums; bias and skip may be added in another order.

    ## References
    onnxruntime contrib operator SkipLayerNormalization.
    """

    code: ClassVar[str] = "NRM003"
    name: ClassVar[str] = "skip-layer-norm"
    op: ClassVar[str] = "SkipLayerNormalization"
    anchors: ClassVar[frozenset[str]] = frozenset({"LayerNormalization"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::SkipLayerNormalization",)

    def inputs_of(self, facts: SkipFacts) -> tuple[ir.Value | None, ...]:
        """See :class:`SkipLayerNorm`."""
        return facts.parts.x, facts.parts.skip, facts.gamma, facts.beta, facts.parts.bias


SkipLayerNorm.examples = (
    fires(
        "float[B,S,8] x, float[B,S,8] skip",
        "float[B,S,8] y, float[B,S,8] z",
        ("b = Add (x, c) t = Add (b, skip) y = LayerNormalization <axis = -1, epsilon = 0.001> (t, w, c) z = Neg (t)"),
        emits={"com.microsoft::SkipLayerNormalization": 1, "Add": 0},
        constants=(
            "float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}, float[8] c = {1, 0.5, -2, "
            "0.125, -1, 0.75, 2.5, -0.5}"
        ),
        onnxruntime=(1, 26),
    ),
    fires(
        "float[2,3,8] x, float[3,8] skip",
        "float[2,3,8] y",
        "t = Add (skip, x) y = LayerNormalization <axis = 2> (t, w)",
        emits={"com.microsoft::SkipLayerNormalization": 1},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    declines(
        "float[B,S,8] x, float[B,1,8] skip",
        "float[B,S,8] y",
        "t = Add (x, skip) y = LayerNormalization <axis = -1> (t, w)",
        because="broadcast",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    declines(
        "float[B,4,S,8] x, float[B,4,S,8] skip",
        "float[B,4,S,8] y",
        "t = Add (x, skip) y = LayerNormalization <axis = -1> (t, w)",
        because="rank",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        onnxruntime=(1, 26),
    ),
    declines(
        "float[B,S,8] x, float[B,S,8] skip",
        "float[B,S,8] y",
        "t = Add (x, skip) y = LayerNormalization <axis = -1> (t, w)",
        because="slower",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
)
