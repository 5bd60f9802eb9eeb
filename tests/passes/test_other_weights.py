"""Attention without a softmax is no secret: it is a site, declined; layers that only look alike are none."""

from __future__ import annotations

import pytest

from deployml.custom_ops import register
from deployml.passes import pipeline

from .core_graphs import CPU
from .rewriting import parsed

_QKV = "float[B,4,S,16] q, float[B,4,16,S] k, float[B,4,S,16] v"
_Y = "float[B,4,S,16] y"
_W = "float[3,16,16] w = {" + ", ".join(["0.5"] * 768) + "}, float low = {-1e30}, float two = {2}, int64[1] ax = {-1}"

ATTENTION = {
    "sigmoid": "s = MatMul (q, k) p = Sigmoid (s) y = MatMul (p, v)",
    "sigmoid, masked": "s = MatMul (q, k) m = Where (keep, s, low) p = Sigmoid (m) y = MatMul (p, v)",
    "squared relu": "s = MatMul (q, k) r = Relu (s) p = Mul (r, r) y = MatMul (p, v)",
    "laplace": "s = MatMul (q, k) e = Erf (s) p = Add (e, two) y = MatMul (p, v)",
    "exponentials, never divided": """s = MatMul (q, k) m = ReduceMax (s, ax) d = Sub (s, m) p = Exp (d)
        y = MatMul (p, v)""",
    "keys and values first": """qt = Transpose <perm = [0,1,3,2]> (q) kt = Transpose <perm = [0,1,3,2]> (k)
        s = MatMul (kt, qt) p = Sigmoid (s) vt = Transpose <perm = [0,1,3,2]> (v) z = MatMul (vt, p)
        y = Transpose <perm = [0,1,3,2]> (z)""",
}
OTHER = {
    "linear attention": "r = Relu (q) s = MatMul (k, v) y = MatMul (r, s)",
    "decay beside the scores": "s = MatMul (q, k) e = Exp (decay) p = Mul (s, e) y = MatMul (p, v)",
    "a gate of a layer": "s = MatMul (q, k) g = Sigmoid (s) p = ReduceMean <keepdims = 1> (g, ax) y = Mul (p, v)",
    "chosen experts": """u = Gather (w, at) h = MatMul (v, u) r = Relu (h) d = Gather (w, at) y = MatMul (r, d)""",
    "softmax": "s = MatMul (q, k) p = Softmax <axis = -1> (s) y = MatMul (p, v)",
}


def _sites(body: str) -> list[tuple[str, str | None]]:
    more = {"keep": "bool[B,1,S,S] keep", "decay": "float[B,4,S,S] decay", "at)": "int64 at"}
    inputs = ", ".join([_QKV, *(text for name, text in more.items() if name in body)])
    model = parsed(inputs, _Y, body, constants=_W)
    return [(s.status, s.reason) for s in pipeline.run(model, CPU, configure=register).journal.sites]


@pytest.mark.parametrize("form", ATTENTION)
def test_weights_that_are_no_softmax_are_a_declined_site(form: str) -> None:
    assert _sites(ATTENTION[form]) == [("declined", "no-softmax")]


@pytest.mark.parametrize("form", OTHER)
def test_nothing_else_is_taken_for_one(form: str) -> None:
    assert "no-softmax" not in [reason for _, reason in _sites(OTHER[form])]
