"""Attention between tensors of (B, N, S, H) takes them as they are; nothing is turned and turned back."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest

from deployml import custom_ops
from deployml.passes import pipeline
from deployml.passes.example_text import graph_text
from deployml.runtime.target import Target

from .rewriting import outputs

TARGET = Target(name="cpu", onnxruntime=(1, 31, 1), opset=23)
_SCORES = "q = Neg (a) k = Neg (b) v = Neg (c) kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt)"
_CONSTANTS = "float half = {0.5}, float ten = {10}, int64[3] fold = {0, 0, 32}, float[4,1] sink = {1, -1, 2, 0}"
_INPUTS = "float[B,4,S,16] a, float[B,4,T,16] b, float[B,4,T,8] c, float[B,4,S,T] m"

#: What becomes of the scores, and what the operator's name then says.
FORMS = {
    "plain": ("x = Mul (s, half)", ""),
    "capped": ("d = Div (s, ten) t = Tanh (d) x = Mul (t, ten)", ""),
    "biased": ("x = Add (s, m)", "_bias"),
}


def graph(form: str, end: str, result: str, more: str = "") -> ir.Model:
    body = f"{_SCORES} {form} p = Softmax <axis = -1> (x) o = MatMul (p, v) {end}"
    text = graph_text(_INPUTS, f"float[{result}] y{more}", body, constants=_CONSTANTS, opset=23)
    return ir.from_onnx_text(text)


def given() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 4, 5, 16), "b": (2, 4, 7, 16), "c": (2, 4, 7, 8), "m": (2, 4, 5, 7)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def fused(model: ir.Model, *disabled: str) -> tuple[ir.Model, str, Counter[str]]:
    options = pipeline.Options(simplify=False, disabled=disabled)
    outcome = pipeline.run(model, TARGET, options=options, configure=custom_ops.register)
    (site,) = outcome.journal.sites
    assert site.status == "fused"
    return outcome.model, str(site.op), Counter(node.op_type for node in outcome.model.graph)


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_turned_between_tensors_with_their_heads_first(name: str) -> None:
    form, parts = FORMS[name]
    model, op, count = fused(graph(form, "y = Neg (o)", "B,4,S,8"), "ATT102", "ATT103")
    assert op == f"deployml::FlashAttention_bnsh{parts}"
    assert not count["Transpose"] and not count["Reshape"]
    (plain,), (found,) = outputs(graph(form, "y = Neg (o)", "B,4,S,8"), given()), outputs(model, given())
    assert np.abs(plain - found).max() < 2e-6


def test_the_standard_operator_takes_them_as_they_are_too() -> None:
    form, _ = FORMS["biased"]
    model, op, count = fused(graph(form, "y = Neg (o)", "B,4,S,8"), "ATT102", "ATT104")
    assert op == "Attention" and count == {"Neg": 4, "Attention": 1}
    (node,) = [n for n in model.graph if n.op_type == "Attention"]
    assert not {"q_num_heads", "kv_num_heads"} & set(node.attributes)
    (plain,), (found,) = outputs(graph(form, "y = Neg (o)", "B,4,S,8"), given()), outputs(model, given())
    assert np.abs(plain - found).max() < 2e-6


@pytest.mark.parametrize("rule", ["ATT103", "ATT104"])
def test_a_result_that_goes_on_folded_is_folded_once(rule: str) -> None:
    form, _ = FORMS["biased"]
    end = "t = Transpose <perm = [0, 2, 1, 3]> (o) f = Reshape (t, fold) y = Neg (f)"
    model, _, count = fused(graph(form, end, "B,S,32"), "ATT102", rule)
    assert (count["Transpose"], count["Reshape"]) == (1, 1)
    (plain,), (found,) = outputs(graph(form, end, "B,S,32"), given()), outputs(model, given())
    assert np.abs(plain - found).max() < 2e-6


def test_weights_come_out_beside_the_result() -> None:
    form, _ = FORMS["biased"]
    model, op, count = fused(graph(form, "y = Neg (o) w = Neg (p)", "B,4,S,8", ", float[B,4,S,T] w"))
    assert op == "deployml::FlashAttention_bnsh_bias_weights" and not count["Transpose"]
    pairs = zip(
        outputs(graph(form, "y = Neg (o) w = Neg (p)", "B,4,S,8", ", float[B,4,S,T] w"), given()),
        outputs(model, given()),
        strict=True,
    )
    assert all(np.abs(plain - found).max() < 2e-6 for plain, found in pairs)


def test_switched_off_it_leaves_the_transposes() -> None:
    _, op, count = fused(graph(FORMS["plain"][0], "y = Neg (o)", "B,4,S,8"), "ATT114", "ATT102", "ATT103")
    assert op == "deployml::FlashAttention" and count["Transpose"] == 4
