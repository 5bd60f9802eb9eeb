"""Windows of unknown number beside the batch: products of five axes, none of the first two fixed."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes import attention
from deployml.passes.canonical import expand_all
from deployml.passes.graph import census

from .rewriting import outputs, parsed, rewrite

_INPUTS = "float[B,W,S,4,16] q, float[B,W,T,4,16] k, float[B,W,T,4,16] v, {}"
_BODY = """s = Einsum <equation = "...qhd,...khd->...hqk"> (q, k)
x = Mul (s, c)
{}
p = Softmax <axis = -1> (z)
y = Einsum <equation = "...hqk,...khd->...qhd"> (p, v)"""
_CONSTANTS = "float c = {0.25}, float low = {-inf}"

#: Name to (input, its shape, line that applies it).
_MASKS = {
    "of each window": ("bool[B,W,1,1,T] m", (2, 3, 1, 1, 7), "z = Where (m, x, low)"),
    "of the batch": ("bool[B,1,1,1,T] m", (2, 1, 1, 1, 7), "z = Where (m, x, low)"),
    "one bias": ("float[4,S,T] m", (4, 5, 7), "z = Add (x, m)"),
}


@pytest.mark.parametrize("mask", _MASKS)
def test_attention_over_windows_of_unknown_number_is_one_node(mask: str) -> None:
    given, shape, line = _MASKS[mask]
    model = parsed(_INPUTS.format(given), "float[B,W,S,4,16] y", _BODY.format(line), constants=_CONSTANTS)
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal((2, 3, s, 4, 16)).astype(np.float32) for n, s in zip("qkv", (5, 7, 7), strict=True)}
    drawn = rng.standard_normal(shape).astype(np.float32)
    feeds["m"] = drawn if mask == "one bias" else (drawn > -0.5) | (np.arange(shape[-1]) == 0)
    (expected,) = outputs(model, feeds)
    rewrite(model, attention.RECOGNISE)
    assert census(model)["deployml.canonical::Attention"] == 1
    assert "Softmax" not in census(model) and "MatMul" not in census(model)  # the scores are computed nowhere else
    expand_all(model)
    np.testing.assert_allclose(outputs(model, feeds)[0], expected, rtol=0, atol=1e-5)
