"""A cap on the scores in the forms it is written in: what counts are the factors below and above the tanh."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml import custom_ops
from deployml.passes import canonical, pipeline
from deployml.passes.attention.recognise import SoftmaxAttention

from .core_graphs import CPU
from .rewriting import declined, outputs, parsed, rewrite

_INPUTS = "float[B,4,S,16] q, float[B,4,16,T] k, float[B,4,T,16] v, float[B,1,S,T] m, float[4,1,1] h"
_CONSTANTS = (
    "float four = {4}, float ten = {10}, float tenth = {0.1}, "
    "float quarter = {0.25}, float less = {-4}, float nil = {0}"
)

#: The text between the product s and the masked scores a, and the scale and cap that it means.
FORMS = {
    "plain": ("x = Div (s, ten) t = Tanh (x) c = Mul (t, ten) a = Add (c, m)", 1.0, 10.0),
    "times the inverse": ("x = Mul (tenth, s) t = Tanh (x) c = Mul (ten, t) a = Add (c, m)", 1.0, 10.0),
    "a late factor": ("x = Div (s, ten) t = Tanh (x) c = Mul (t, ten) l = Mul (c, quarter) a = Add (l, m)", 0.25, 2.5),
    "a late divisor": ("x = Div (s, ten) t = Tanh (x) c = Mul (t, ten) l = Div (c, four) a = Add (l, m)", 0.25, 2.5),
    "late, after the mask": (
        "x = Div (s, ten) t = Tanh (x) c = Mul (t, ten) n = Add (c, m) a = Mul (n, quarter)",
        0.25,
        2.5,
    ),
    "two numbers": ("x = Div (s, four) t = Tanh (x) c = Mul (t, ten) a = Add (c, m)", 2.5, 10.0),
    "no divisor": ("t = Tanh (s) c = Mul (t, ten) a = Add (c, m)", 10.0, 10.0),
    "no factor": ("x = Mul (s, quarter) t = Tanh (x) a = Add (t, m)", 0.25, 1.0),
    "a scale below": ("e = Mul (s, quarter) x = Div (e, ten) t = Tanh (x) c = Mul (t, ten) a = Add (c, m)", 0.25, 10.0),
    "nothing added below": (
        "z = Add (s, nil) x = Div (z, ten) t = Tanh (x) c = Mul (t, ten) a = Add (c, m)",
        1.0,
        10.0,
    ),
    "a factor of each head below": (
        "e = Mul (s, h) x = Div (e, ten) t = Tanh (x) c = Mul (t, four) a = Add (c, m)",
        0.4,
        4.0,
    ),
}
#: Nothing that a cap can say.
OTHERS = {
    "a factor of each head above": "x = Div (s, ten) t = Tanh (x) c = Mul (t, h) a = Add (c, m)",
    "a factor below 0": "x = Div (s, ten) t = Tanh (x) c = Mul (t, less) a = Add (c, m)",
    "capped twice": "x = Tanh (s) e = Mul (x, four) t = Tanh (e) c = Mul (t, ten) a = Add (c, m)",
    "a mask below": "e = Add (s, m) x = Div (e, ten) t = Tanh (x) a = Mul (t, ten)",
}


def graph(form: str) -> ir.Model:
    body = f"s = MatMul (q, k) {form} p = Softmax <axis = -1> (a) y = MatMul (p, v)"
    return parsed(_INPUTS, "float[B,4,S,16] y", body, constants=_CONSTANTS)


def given() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, 5, 16), "k": (2, 4, 16, 7), "v": (2, 4, 7, 16), "m": (2, 1, 5, 7), "h": (4, 1, 1)}
    return {name: 2 * rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_one_node_that_means_the_same(name: str) -> None:
    form, scale, cap = FORMS[name]
    found = graph(form)
    rewrite(found, [SoftmaxAttention()])
    (site,) = [canonical.read(n) for n in found.graph if canonical.is_attention(n)]
    assert (site.scale, site.softcap) == pytest.approx((scale, cap), rel=1e-6)
    outcome = pipeline.run(graph(form), CPU, options=pipeline.Options(simplify=False), configure=custom_ops.register)
    assert [s.status for s in outcome.journal.sites] == ["fused"]
    (plain,), (fused,) = outputs(graph(form), given()), outputs(outcome.model, given())
    assert np.abs(plain - fused).max() < 2e-6 * np.abs(plain).max()


@pytest.mark.parametrize("name", OTHERS)
def test_what_a_cap_cannot_say_is_declined(name: str) -> None:
    model = graph(OTHERS[name])
    assert declined(rewrite(model, [SoftmaxAttention()])) == ["softcap-form"]
