"""Scores with their sign changed are scores with another scale; scores kept within bounds are not attention's."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.custom_ops import register
from deployml.passes import pipeline
from deployml.passes.example_text import graph_text
from deployml.runtime.report import Site

from .core_graphs import CPU

_QKV = "float[B,4,S,16] q, float[B,4,16,S] k, float[B,4,S,16] v, float[B,4,S,S] b, float[B,4,S,16] r"
_NUMBERS = "float low = {-5.0}, float high = {5.0}, float lowest = {-3.4028234663852886e+38}"


def site_of(between: str) -> Site:
    """What became of a softmax whose input ``t`` is made of the scores ``s`` by the given nodes."""
    body = f"s = MatMul (q, k) {between} p = Softmax <axis = -1> (t) y = MatMul (p, v)"
    model = ir.from_onnx_text(graph_text(_QKV, "float[B,4,S,16] y", body, constants=_NUMBERS))
    options = pipeline.Options(simplify=False)
    (site,) = pipeline.run(model, CPU, options=options, configure=register).journal.sites
    return site


@pytest.mark.parametrize(
    "between",
    [
        "t = Neg (s)",
        "n = Neg (s) t = Add (n, b)",
        "n = Neg (s) t = Sub (n, b)",
        "t = Sub (b, s)",
        "w = MatMul (r, k) n = Neg (w) t = Add (s, n)",
        "n = Neg (s) t = Max (lowest, n)",
        "t = Clip (s, lowest)",
    ],
)
def test_a_sign_and_a_floor_that_nothing_reaches_are_fused(between: str) -> None:
    site = site_of(between)
    assert (site.status, site.reason) == ("fused", None)


def test_the_own_operator_takes_the_sign_with_the_query() -> None:
    site = site_of("n = Neg (s) d = Div (n, high) h = Tanh (d) t = Mul (h, high)")
    assert (site.status, site.op) == ("fused", "deployml::FlashAttention")


@pytest.mark.parametrize(
    ("between", "said"),
    [
        ("t = Clip (s, , high)", "kept above or below a number"),
        ("t = Clip (s, low)", "kept above or below a number"),
        ("t = Clip (s, lowest, high)", "kept above or below a number"),
        ("t = Max (s, b)", "kept above or below a number"),
        ("t = Min (s, high)", "no operator has Min"),
        ("t = Sin (s)", "no operator has Sin"),
    ],
)
def test_scores_within_bounds_are_declined_in_words(between: str, said: str) -> None:
    site = site_of(between)
    assert (site.status, site.reason) == ("declined", "no-score-product")
    assert site.detail is not None and said in site.detail
