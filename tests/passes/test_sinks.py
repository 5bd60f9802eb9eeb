"""A sink: one more logit for each head, however the vector of the heads came to be a column of the scores."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes import attention
from deployml.passes.canonical import expand_all
from deployml.passes.graph import census

from .rewriting import outputs, parsed, rewrite

_INPUTS = "float[B,4,S,16] q, float[B,4,16,S] k, float[B,4,S,16] v"
_Y = "float[B,4,S,16] y"
_BODY = """s = MatMul (q, k)
qs = Shape (q)
b = Gather <axis = 0> (qs, zero)
n = Gather <axis = 0> (qs, two)
{}
j = Concat <axis = -1> (c, s)
w = Softmax <axis = -1> (j)
p = Slice (w, one, many, last)
y = MatMul (p, v)"""
_CONSTANTS = (
    "float[1] half = {0.5}, float[4] sink = {1.5, -1.0, 2.5, 0.25}, "
    "float[1,4,1] row = {1.5, -1.0, 2.5, 0.25}, int64[1] zero = {0}, "
    "int64[1] one = {1}, int64[1] two = {2}, int64[1] four = {4}, int64[1] many = {9223372036854775807}, "
    "int64[1] last = {3}, int64[2] around = {0, 2}, int64[4] place = {1, 4, 1, 1}"
)
#: Name to lines that make the column (B, 4, S, 1).
_COLUMNS = {
    "expanded as it is": """u = Reshape (sink, place) t = Concat <axis = 0> (b, four, n, one) c = Expand (u, t)""",
    "one number for all heads": "t = Concat <axis = 0> (b, four, n, one) c = Expand (half, t)",
    "repeated, the last axis added after": """u = Unsqueeze (sink, around) t = Concat <axis = 0> (b, four, n)
        e = Expand (u, t) f = Concat <axis = 0> (b, four, n, one) c = Reshape (e, f)""",
    "the same, of a constant with axes": """t = Concat <axis = 0> (b, four, n)
        e = Expand (row, t) f = Concat <axis = 0> (b, four, n, one) c = Reshape (e, f)""",
}


def _feeds(length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, length, 16), "k": (2, 4, 16, length), "v": (2, 4, length, 16)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("column", _COLUMNS)
def test_a_vector_of_the_heads_is_a_sink(column: str) -> None:
    model = parsed(_INPUTS, _Y, _BODY.format(_COLUMNS[column]), constants=_CONSTANTS)
    wanted = {length: outputs(model, _feeds(length))[0] for length in (4, 7)}
    rewrite(model, attention.RECOGNISE)
    assert census(model)["deployml.canonical::Attention"] == 1
    assert "Softmax" not in census(model)
    expand_all(model)
    for length, expected in wanted.items():
        np.testing.assert_allclose(outputs(model, _feeds(length))[0], expected, rtol=0, atol=1e-5)


def test_a_logit_for_each_query_is_no_sink() -> None:
    """(1, 4, 4, 1) where the four numbers run over four queries, not over the four heads."""
    inputs, y = _INPUTS.replace("S", "4"), _Y.replace("S", "4")
    lines = """u = Unsqueeze (sink, zero) v1 = Unsqueeze (u, zero) t = Concat <axis = 0> (b, four, four)
        e = Expand (v1, t) f = Concat <axis = 0> (b, four, four, one) c = Reshape (e, f)"""
    model = parsed(inputs, y, _BODY.format(lines), constants=_CONSTANTS)
    (expected,) = outputs(model, _feeds(4))
    rewrite(model, attention.RECOGNISE)
    assert "deployml.canonical::Attention" not in census(model)
    np.testing.assert_allclose(outputs(model, _feeds(4))[0], expected, rtol=0, atol=1e-6)
