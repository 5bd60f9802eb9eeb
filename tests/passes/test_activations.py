"""Activation rules beyond their examples: the two GELU forms are never mixed up."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes import activations
from deployml.passes.graph import attribute, census

from .rewriting import declined, outputs, parsed, rewrite

ROW = "float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}"


def test_tanh_gelu_never_becomes_bias_gelu() -> None:
    text = ("float[B,S,8] x", "float[B,S,8] y", 't = Add (x, w) y = Gelu <approximate = "tanh"> (t)')
    plain, model = parsed(*text, constants=ROW), parsed(*text, constants=ROW)
    rewrite(model, activations.RULES)
    assert census(model) == {"com.microsoft::FastGelu": 1}
    feeds = {"x": np.linspace(-6, 6, 2 * 5 * 8, dtype=np.float32).reshape(2, 5, 8)}
    np.testing.assert_allclose(outputs(model, feeds)[0], outputs(plain, feeds)[0], rtol=0, atol=3e-6)


def test_the_two_forms_differ_by_more_than_the_tests_allow() -> None:
    erf = parsed("float[N,8] x", "float[N,8] y", "y = Gelu (x)")
    tanh = parsed("float[N,8] x", "float[N,8] y", 'y = Gelu <approximate = "tanh"> (x)')
    feeds = {"x": np.linspace(-6, 6, 800, dtype=np.float32).reshape(100, 8)}
    assert np.max(np.abs(outputs(erf, feeds)[0] - outputs(tanh, feeds)[0])) > 1e-4


@pytest.mark.parametrize("factors", ["h = Mul (x, half) y = Mul (h, a)", "m = Mul (a, x) y = Mul (half, m)"])
def test_gelu_in_either_grouping(factors: str) -> None:
    constants = "float root = {1.4142135}, float one = {1}, float half = {0.5}"
    model = parsed(
        "float[B,8] x", "float[B,8] y", "d = Div (x, root) e = Erf (d) a = Add (one, e) " + factors, constants=constants
    )
    rewrite(model, activations.RULES)
    assert census(model) == {"Gelu": 1}


@pytest.mark.parametrize(("word", "alpha"), [("", 1.0), ("1.702", 1.702)])
def test_alpha_is_kept(word: str, alpha: float) -> None:
    inner = "a = Mul (x, alpha) s = Sigmoid (a)" if word else "s = Sigmoid (x)"
    constants = f"float alpha = {{{word}}}" if word else ""
    model = parsed("float[B,8] x", "float[B,8] y", inner + " y = Mul (s, x)", constants=constants)
    rewrite(model, activations.RULES)
    assert np.float32(attribute(next(iter(model.graph)), "alpha")) == np.float32(alpha)


def test_a_gate_of_something_else_is_no_activation() -> None:
    model = parsed("float[B,8] x, float[B,8] g", "float[B,8] y", "s = Sigmoid (g) y = Mul (s, x)")
    journal = rewrite(model, activations.RULES)
    assert census(model) == {"Mul": 1, "Sigmoid": 1}
    assert declined(journal) == []


def test_the_portable_target_keeps_standard_operators() -> None:
    model = parsed("float[B,8] x", "float[B,8] y", "t = Add (x, w) y = Gelu (t)", constants=ROW)
    rewrite(model, activations.RULES, "portable")
    assert census(model) == {"Add": 1, "Gelu": 1}
