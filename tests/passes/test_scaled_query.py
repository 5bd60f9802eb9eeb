"""A factor on query or key becomes the scale of whichever operator attends."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes.attention.scaled_query import ScaledQuery
from deployml.passes.graph import attribute

from .rewriting import outputs, parsed, rewrite

_OWN = (
    "deployml.FlashAttention <num_heads = 4, kv_heads = 4, scale = 0.0, causal = 1, lower_right = 0, window_left = -1, "
    "window_right = -1, softcap = 2.0> (q, k, v)"
)
_MASKED = "com.microsoft.MultiHeadAttention <num_heads = 4, scale = 0.5> (q, k, v, , , m)"
OPERATORS = {
    "own, capped": (_OWN, 0.25),
    "MultiHeadAttention": ("com.microsoft.MultiHeadAttention <num_heads = 4> (q, k, v)", 0.25),
    "with a bias": (_MASKED, 0.5),
    "standard": ("Attention <q_num_heads = 4, kv_num_heads = 4, scale = 0.125> (q, k, v)", 0.125),
}
_INPUTS = "float[B,S,64] x, float[B,S,64] k, float[B,S,64] v, float[B,4,S,S] m"


def graph(operator: str, factor: str) -> ir.Model:
    constants = "float c = {3}, float[1] d = {0.5}"
    return parsed(_INPUTS, "float[B,S,64] y", f"q = {factor} y = {operator}", constants=constants, opset=23)


@pytest.mark.parametrize(("factor", "number"), [("Mul (x, c)", 3.0), ("Mul (d, x)", 0.5), ("Div (x, d)", 2.0)])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_factor_goes_into_the_scale(name: str, factor: str, number: float) -> None:
    operator, scale = OPERATORS[name]
    model = graph(operator, factor)
    rewrite(model, [ScaledQuery()])
    (node,) = list(model.graph)
    assert attribute(node, "scale") == pytest.approx(scale * number)
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal((2, 5, 64)).astype(np.float32) for name in "xkv"}
    given["m"] = rng.standard_normal((2, 4, 5, 5)).astype(np.float32)
    (plain,), (found,) = outputs(graph(operator, factor), given), outputs(model, given)
    assert np.abs(plain - found).max() < 5e-6


@pytest.mark.parametrize("factor", ["Mul (x, k)", "Sub (c, x)", "Div (c, x)"])
def test_what_is_no_constant_factor_stays(factor: str) -> None:
    model = graph(OPERATORS["MultiHeadAttention"][0], factor)
    rewrite(model, [ScaledQuery()])
    assert len(list(model.graph)) == 2
