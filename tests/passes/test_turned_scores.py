"""One product of scores read both ways: every query attends to the keys, and every key to the queries."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes import attention
from deployml.passes.canonical import expand_all
from deployml.passes.graph import census

from .rewriting import outputs, parsed, rewrite

_INPUTS = "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, float[B,4,S,16] w, bool[B,1,S,T] m"
_BOTH = "float[B,4,S,16] y, float[B,4,T,16] z"
_BODY = """kt = Transpose <perm = [0, 1, 3, 2]> (k)
s = MatMul (q, kt)
x = Mul (s, scale)
{}
p = Softmax <axis = -1> (f)
y = MatMul (p, v)
r = Softmax <axis = -1> (b)
z = MatMul (r, w)"""
_CONSTANTS = "float scale = {0.5}, float low = {-1e38}"
_MASKS = {
    "none": "f = Identity (x) b = Transpose <perm = [0, 1, 3, 2]> (x)",
    "before both": "f = Where (m, x, low) b = Transpose <perm = [0, 1, 3, 2]> (f)",
    "after the turn": """f = Where (m, x, low) t = Transpose <perm = [0, 1, 3, 2]> (x)
        mt = Transpose <perm = [0, 1, 3, 2]> (m) b = Where (mt, t, low)""",
}


@pytest.mark.parametrize("mask", _MASKS)
def test_both_directions_are_attentions(mask: str) -> None:
    model = parsed(_INPUTS, _BOTH, _BODY.format(_MASKS[mask]), constants=_CONSTANTS)
    rng = np.random.default_rng(0)
    sizes = {"q": 5, "k": 7, "v": 7, "w": 5}
    feeds = {name: rng.standard_normal((2, 4, size, 16)).astype(np.float32) for name, size in sizes.items()}
    feeds["m"] = rng.random((2, 1, 5, 7)) > 0.3
    feeds["m"][:, :, 0, :] = feeds["m"][:, :, :, 0] = True
    wanted = outputs(model, feeds)
    rewrite(model, attention.RECOGNISE)
    assert census(model)["deployml.canonical::Attention"] == 2
    assert "Softmax" not in census(model) and "MatMul" not in census(model)
    expand_all(model)
    for found, expected in zip(outputs(model, feeds), wanted, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
