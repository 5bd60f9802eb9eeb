"""ACT003: a bias and the exact GELU that reads it."""

from __future__ import annotations

from typing import ClassVar

from ..example_text import declines, fires
from .bias import BiasThenGelu

__all__ = ["BiasGelu"]


class BiasGelu(BiasThenGelu):
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
    form: ClassVar[str] = "none"
    op: ClassVar[str] = "BiasGelu"


BiasGelu.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "t = Add (x, w) y = Gelu (t)",
        emits={"com.microsoft::BiasGelu": 1},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    fires(
        "float[3,8] x",
        "float[3,8] y",
        "t = Add (w, x) y = com.microsoft.Gelu (t)",
        emits={"com.microsoft::BiasGelu": 1},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        opset=17,
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y, float[B,S,8] t",
        "t = Add (x, w) y = Gelu (t)",
        because="sum-read-elsewhere",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "t = Add (x, one) y = Gelu (t)",
        because="bias-shape",
        constants="float[1] one = {1}",
    ),
)
