"""ACT004: a bias and the tanh GELU that reads it."""

from __future__ import annotations

from typing import ClassVar

from ..example_text import declines, fires
from .bias import BiasThenGelu

__all__ = ["BiasFastGelu"]


class BiasFastGelu(BiasThenGelu):
    """A bias added before the tanh form of GELU.

    ## What it finds
    ``Gelu(x + bias, approximate="tanh")`` or ``FastGelu(x + bias)``, with a constant vector along the last
    axis.

    ## Why
    One pass over the widest tensor of a transformer block instead of two.

    ## Before -> After
    ``Add, Gelu(approximate="tanh")`` -> ``com.microsoft::FastGelu`` with its bias input.

    ## When it declines
    * ``bias-shape``: the vector is not one constant a feature.
    * ``sum-read-elsewhere``: something else needs the sum.
    * ``dtype``: the target has no kernel for the element type.

    ## Numerics
    ROUNDING: the same function in another order of products.

    ## References
    onnxruntime contrib operator FastGelu.
    """

    code: ClassVar[str] = "ACT004"
    name: ClassVar[str] = "bias-fast-gelu"
    anchors: ClassVar[frozenset[str]] = frozenset({"Gelu", "com.microsoft::FastGelu"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::FastGelu",)
    form: ClassVar[str] = "tanh"
    op: ClassVar[str] = "FastGelu"


BiasFastGelu.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,8] y",
        't = Add (x, w) y = Gelu <approximate = "tanh"> (t)',
        emits={"com.microsoft::FastGelu": 1, "Add": 0},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    fires(
        "float[3,8] x",
        "float[3,8] y",
        "t = Add (w, x) y = com.microsoft.FastGelu (t)",
        emits={"com.microsoft::FastGelu": 1, "Add": 0},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
        opset=17,
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y, float[B,S,8] t",
        't = Add (x, w) y = Gelu <approximate = "tanh"> (t)',
        because="sum-read-elsewhere",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,8] y",
        "t = Add (x, one) y = com.microsoft.FastGelu (t)",
        because="bias-shape",
        constants="float[1] one = {1}",
    ),
)
