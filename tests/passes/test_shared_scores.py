"""A declined attention whose scores are read elsewhere ends with as many matrix products as it began with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes import pipeline
from deployml.passes.example_text import graph_text
from deployml.passes.graph import census
from deployml.runtime.target import Target

from .core_graphs import feeds, run

_FOUR = "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, bool[B,1,1,T] m"
_TURN = "kt = Transpose <perm = [0,1,3,2]> (k) "
_REST = "x = Mul (s, c) z = Where (m, x, low) p = Softmax <axis = -1> (z) y = MatMul (p, v)"
_C = "float c = {0.25}, float low = {-inf}, float half = {0.5}"
_MERGED = """q3 = Reshape (q, join) k3 = Reshape (k, join) v3 = Reshape (v, join)
    kt = Transpose <perm = [0,2,1]> (k3) s = MatMul (q3, kt) """
_THREE = _MERGED + "x = Mul (s, c) p = Softmax <axis = -1> (x) w = MatMul (p, v3) y = Reshape (w, part)"

#: Name to (inputs, outputs beside y, body).
FORMS = {
    "scores": (_FOUR, "float[B,4,S,T] s", _TURN + "s = MatMul (q, kt) " + _REST),
    "scaled": (_FOUR, "float[B,4,S,T] x", _TURN + "s = MatMul (q, kt) " + _REST),
    "masked": (_FOUR, "float[B,4,S,T] z", _TURN + "s = MatMul (q, kt) " + _REST),
    "scaled query": (_FOUR, "float[B,4,S,T] s", _TURN + "h = Mul (q, half) s = MatMul (h, kt) " + _REST),
    "scaled key": (
        _FOUR,
        "float[B,4,S,T] s",
        "h = Div (k, half) " + _TURN.replace("(k)", "(h)") + "s = MatMul (q, kt) " + _REST,
    ),
    "key given turned": (
        _FOUR.replace("T,16] k", "16,T] k"),
        "float[B,4,S,T] s",
        "s = MatMul (q, k) " + _REST,
    ),
    "heads in the batch": (_FOUR.replace(", bool[B,1,1,T] m", ""), "float[Z,S,T] s", _THREE),
}


def _model(form: str) -> ir.Model:
    inputs, other, body = FORMS[form]
    join, part = "int64[3] join = {-1, 0, 16}", "int64[4] part = {-1, 4, 0, 16}"
    if form == "heads in the batch":  # lengths that a Reshape cannot copy are fixed
        inputs, other = inputs.replace("S,", "5,").replace("T,", "7,"), other.replace("S,T", "5,7")
        body = body.replace("(q, join)", "(q, rows)")
        join, part = "int64[3] join = {-1, 7, 16}, int64[3] rows = {-1, 5, 16}", "int64[4] part = {-1, 4, 5, 16}"
    rows = "5" if form == "heads in the batch" else "S"
    return ir.from_onnx_text(
        graph_text(inputs, f"float[B,4,{rows},16] y, {other}", body, constants=f"{_C}, {join}, {part}")
    )


@pytest.mark.parametrize("form", FORMS)
def test_no_product_is_computed_twice(form: str) -> None:
    model = _model(form)
    given = feeds(model)
    before, expected = census(model)["MatMul"], run(model, given)
    target = Target(name="portable", onnxruntime=(1, 31, 1), opset=20)  # no attention operator at all
    outcome = pipeline.run(model, target, options=pipeline.Options(simplify=False))
    (site,) = outcome.journal.sites
    assert site.status == "declined"
    assert census(outcome.model)["MatMul"] == before == 2
    for one, other in zip(run(outcome.model, given), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
