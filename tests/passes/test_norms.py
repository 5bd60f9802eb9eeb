"""Norm rules beyond their examples: exact constants, the residual that is read on, and what must not fuse."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deployml.passes import norms, residual
from deployml.passes.graph import attribute, census, constant
from deployml.runtime.target import Target

from .rewriting import declined, outputs, parsed, rewrite

SKIP_RMS = "com.microsoft::SkipSimplifiedLayerNormalization"
SKIP_LN = "com.microsoft::SkipLayerNormalization"
OWN = "deployml::SkipNormalization"
ROW = "float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}"
RMS = "p = Pow (h, two) m = ReduceMean <keepdims = 1> (p, last) a = Add (m, eps) r = Sqrt (a) n = Div (h, r) "
#: Version, rules switched off, what ``t = x + k; LayerNormalization(t)`` becomes.
FORMS = [
    ((1, 31), (), {f"{OWN}_sum": 1}),
    ((1, 26), (), {f"{OWN}_sum": 1}),
    ((1, 29), ("NRM006",), {SKIP_LN: 1}),
    ((1, 30), ("NRM006",), {"Sum": 1, "LayerNormalization": 1}),
    ((1, 30), ("NRM006", "NRM007"), {"Add": 1, "LayerNormalization": 1}),
]
ENDS = f"float two = {{2}}, int64[1] last = {{-1}}, {ROW}, "


def test_epsilon_is_kept_to_the_bit() -> None:
    model = parsed(
        "float[B,S,8] h", "float[B,S,8] y", RMS + "y = Mul (n, w)", constants=ENDS + "float eps = {0.0000123}"
    )
    rewrite(model, norms.RULES)
    node = next(iter(model.graph))
    assert node.op_type == "SimplifiedLayerNormalization"
    assert np.float32(attribute(node, "epsilon")) == np.float32(0.0000123)


def test_one_plus_weight_is_read_as_the_weight() -> None:
    model = parsed(
        "float[B,S,8] h, float[8] v",
        "float[B,S,8] y",
        "s = Add (v, one) " + RMS + "y = Mul (n, s)",
        constants=ENDS + "float eps = {0.000001}, float one = {1}",
    )
    rewrite(model, norms.RULES)
    assert census(model) == {"Add": 1, "SimplifiedLayerNormalization": 1}


def test_a_norm_without_weight_gets_ones() -> None:
    model = parsed("float[B,S,8] h", "float[B,S,8] y", RMS + "y = Neg (n)", constants=ENDS + "float eps = {0.000001}")
    rewrite(model, norms.RULES)
    node = next(n for n in model.graph if n.op_type == "SimplifiedLayerNormalization")
    assert np.array_equal(constant(node.inputs[1]), np.ones(8, np.float32))


def test_two_norms_of_one_sum_add_once() -> None:
    model = parsed(
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y, float[B,S,8] z",
        "t = Add (x, k) y = SimplifiedLayerNormalization <axis = -1> (t, w) "
        "z = SimplifiedLayerNormalization <axis = -1> (t, v)",
        constants=f"{ROW}, float[8] v = {{1, 2, 3, 4, 5, 6, 7, 8}}",
    )
    rewrite(model, norms.RULES)
    assert census(model) == {"SimplifiedLayerNormalization": 1, f"{OWN}_rms_sum": 1}


def test_a_bias_that_is_read_elsewhere_stays_outside() -> None:
    model = parsed(
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y, float[B,S,8] z",
        "b = Add (x, w) t = Add (b, k) y = LayerNormalization <axis = -1> (t, w) z = Neg (b)",
        constants=ROW,
    )
    rewrite(model, norms.RULES)
    assert census(model) == {"Add": 1, "Neg": 1, OWN: 1}


@pytest.mark.parametrize(("onnxruntime", "disabled", "op"), FORMS)
def test_the_sum_becomes_an_output_and_keeps_its_name(onnxruntime, disabled, op) -> None:
    text = (
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y, float[B,S,8] t",
        "t = Add (x, k) y = LayerNormalization <axis = -1> (t, w)",
    )
    plain, model = parsed(*text, constants=ROW), parsed(*text, constants=ROW)
    rewrite(model, norms.RULES, onnxruntime=onnxruntime, disabled=disabled)
    assert census(model) == op
    assert [v.name for v in model.graph.outputs] == ["y", "t"]
    feeds = {n: np.random.default_rng(3).standard_normal((3, 5, 8)).astype(np.float32) for n in "xk"}
    for old, new in zip(outputs(plain, feeds), outputs(model, feeds), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-5)


@pytest.mark.parametrize("skip", ["B,S,1", "B,1,8", "S,1"])
def test_a_broadcast_the_operator_would_read_differently_is_left_alone(skip: str) -> None:
    model = parsed(
        f"float[B,S,8] x, float[{skip}] k",
        "float[B,S,8] y",
        "t = Add (x, k) y = LayerNormalization <axis = -1> (t, w)",
        constants=ROW,
    )
    journal = rewrite(model, norms.RULES)
    assert declined(journal) == ["broadcast"]
    assert census(model) == {"Add": 1, "LayerNormalization": 1}


def test_the_portable_target_gets_standard_operators_only() -> None:
    text = ("float[B,S,8] h", "float[B,S,8] y", RMS + "y = Mul (n, w)")
    constants = ENDS + "float eps = {0.000001}"
    new, old = parsed(*text, constants=constants, opset=23), parsed(*text, constants=constants, opset=20)
    rewrite(new, norms.RULES, "portable")
    journal = rewrite(old, norms.RULES, "portable")
    assert census(new) == {"RMSNormalization": 1}
    assert declined(journal) == ["opset"]


def test_without_the_library_the_plain_form_stays_plain_in_onnxruntime(monkeypatch, tmp_path) -> None:
    """onnxruntime's optimizer makes its slow fused operator of Add and LayerNormalization, and none of Sum."""
    monkeypatch.setattr("deployml.passes.residual.library_path", lambda backend: None)
    monkeypatch.setattr("deployml.passes.norms.own_skip_norm.library_path", lambda backend: None)
    model = parsed(
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y",
        "b = Add (x, w) t = Add (b, k) y = LayerNormalization <axis = -1> (t, w)",
        constants=ROW,
    )
    journal = rewrite(model, norms.RULES)
    assert declined(journal) == ["no-library", "slower"]
    assert census(model) == {"Sum": 1, "LayerNormalization": 1}
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Sum", "LayerNormalization"]


@pytest.mark.parametrize("target", ["cuda", "rocm"])
def test_gpu_targets_keep_the_fused_operator(target) -> None:
    model = parsed(
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y",
        "t = Add (x, k) y = SimplifiedLayerNormalization <axis = -1> (t, w)",
        constants=ROW,
    )
    rewrite(model, norms.RULES, target)
    assert census(model) == {SKIP_RMS: 1}


def test_a_written_out_sum_of_an_earlier_export_becomes_the_own_operator() -> None:
    model = parsed(
        "float[B,S,8] x, float[B,S,8] k",
        "float[B,S,8] y",
        "t = Sum (k, w, x) y = LayerNormalization <axis = -1> (t, w, w)",
        constants=ROW,
    )
    rewrite(model, norms.RULES)
    assert census(model) == {f"{OWN}_shift_bias": 1}


@pytest.mark.parametrize(
    ("target", "library", "expected"),
    [("cpu", True, ("own", "fused")), ("cpu", False, ("fused",)), ("cuda", True, ("fused",)), ("portable", True, ())],
)
def test_fusing_always_never_leaves_a_plain_sum(monkeypatch, target, library, expected) -> None:
    monkeypatch.setattr(residual, "library_path", lambda backend: "library" if library else None)
    asked = Target(name=target, onnxruntime=(1, 31, 1), opset=21, fusion="always")
    assert residual.forms("LayerNormalization", asked) == expected
