"""SkipNormalization against its float64 reference: kernel, function body, instruction sets, errors, special values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from deployml.custom_ops.skip_normalization import Signature, function_body, naive, reference, signatures
from deployml.custom_ops.skip_normalization.cases import Case, cases, make_inputs, random_case
from deployml.custom_ops.skip_normalization.check import check_case, one_node_model, run_case
from deployml.runtime.errors import InputError, UnsupportedError

ALL = cases()
FULL = Signature(shift=True, bias=True, sum=True)

# Run in a process of its own, because the instruction set is chosen once a process.
ISA_SCRIPT = """
import onnxruntime
from deployml.custom_ops import register
from deployml.custom_ops.skip_normalization.cases import cases, random_case
from deployml.custom_ops.skip_normalization.check import check_case

for case in [*cases(), *map(random_case, range(60))]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    register(options, only=[case.signature.op_type])
    result = check_case(case, options)
    if not result.passed:
        print(case.name, result.errors, result.granted)
print("done")
"""


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_kernel_is_as_exact_as_the_naive_twin_allows(case, options):
    result = check_case(case, options(case.signature.op_type))
    assert result.passed, (result.errors, result.granted)


@pytest.mark.parametrize("case", ALL[::3], ids=lambda case: case.name)
def test_function_body_means_the_same(case, options):
    result = check_case(case, options(library=False))
    assert result.passed, (result.errors, result.granted)


@pytest.mark.parametrize("opset", [17, 18, 23])
@pytest.mark.parametrize("signature", [Signature(rms=True, sum=True), FULL], ids=lambda s: s.op_type)
def test_function_body_in_other_opsets(signature, opset, options):
    case = Case(name="opset", signature=signature)
    inputs = make_inputs(case)
    model = one_node_model(signature, case.epsilon, {n: a.ndim for n, a in inputs.items()}, opset=opset)
    session = onnxruntime.InferenceSession(model, options(library=False), providers=["CPUExecutionProvider"])
    for found, exact in zip(session.run(None, inputs), reference(signature, case.epsilon, inputs), strict=True):
        np.testing.assert_allclose(found, exact, atol=2e-6)


def test_no_function_body_before_layer_normalization():
    with pytest.raises(UnsupportedError, match="has no function body in opset 16"):
        function_body(FULL, opset=16)


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_other_instruction_sets(isa):
    if isa == "avx2" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("not run: this processor has no AVX2")
    done = subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT],
        env={**os.environ, "DEPLOYML_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "done\n"


def test_random_calls(options):
    made = {s.op_type: options(s.op_type) for s in signatures()}
    results = [check_case(case, made[case.signature.op_type]) for case in map(random_case, range(200))]
    assert not [r for r in results if not r.passed]


def test_reference_agrees_with_the_definition_of_one_row():
    rng = np.random.default_rng(0)
    x, skip, scale, shift, bias = rng.standard_normal((5, 6))
    given = {"x": x, "skip": skip, "scale": scale, "shift": shift, "bias": bias}
    row = [a + b + c for a, b, c in zip(x, skip, bias, strict=True)]
    mean = sum(row) / 6
    spread = sum((v - mean) ** 2 for v in row) / 6
    expected = [(v - mean) / (spread + 0.5) ** 0.5 * s + t for v, s, t in zip(row, scale, shift, strict=True)]
    output, total = reference(FULL, 0.5, given)
    np.testing.assert_allclose(output, expected, rtol=1e-12)
    np.testing.assert_allclose(total, row, rtol=1e-12)
    root = [v / (sum(u * u for u in row) / 6 + 0.5) ** 0.5 * s for v, s in zip(row, scale, strict=True)]
    np.testing.assert_allclose(reference(Signature(rms=True, bias=True), 0.5, given)[0], root, rtol=1e-12)


def test_twin_is_not_the_reference():
    case = Case(name="twin", signature=FULL)
    inputs = make_inputs(case)
    exact, twin = reference(FULL, case.epsilon, inputs)[0], naive(FULL, case.epsilon, inputs)[0]
    assert np.max(np.abs(twin - exact)) > 0


@pytest.mark.parametrize("wrong", [{"epsilon": 2e-3}, {"signature": Signature(rms=True)}])
def test_bound_is_sharp_enough_to_see_a_wrong_call(wrong, options):
    right = Case(name="right", epsilon=1e-3, mean=0.5)
    inputs = make_inputs(right)
    found = run_case(Case(**{"name": "wrong", "epsilon": 1e-3, **wrong}), options(), inputs)[0]
    exact = reference(right.signature, right.epsilon, inputs)[0]
    assert np.max(np.abs(found - exact)) > 50 * check_case(right, options()).granted[0]


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("skip", (2, 5, 63), "input skip has shape (2, 5, 63), expected that of x, (2, 5, 64), or its last axes"),
        ("skip", (2, 1, 64), "input skip has shape (2, 1, 64), expected that of x"),
        ("skip", (1, 2, 5, 64), "input skip has shape (1, 2, 5, 64), expected that of x"),
        ("scale", (63,), "input scale has shape (63), expected (64,)"),
        ("shift", (1, 64), "input shift has shape (1, 64), expected (64,)"),
        ("bias", (65,), "input bias has shape (65), expected (64,)"),
        ("x", (2, 5, 0), "input x has shape (2, 5, 0), expected (..., at least one feature)"),
    ],
)
def test_wrong_shape_names_input_and_value(name, shape, said, options):
    case = Case(name="wrong", signature=FULL)
    inputs = {**make_inputs(case), name: np.zeros(shape, np.float32)}
    with pytest.raises(Exception) as caught:
        run_case(case, options(), inputs)
    assert said in str(caught.value)
    assert "deployml::SkipNormalization_shift_bias_sum" in str(caught.value)


@pytest.mark.parametrize("epsilon", [-1.0, float("nan"), float("inf")])
def test_wrong_epsilon_is_refused(epsilon, options):
    with pytest.raises(Exception, match=r"attribute epsilon is .*, it must be finite and not negative"):
        onnxruntime.InferenceSession(one_node_model(Signature(), epsilon, {"x": 3, "skip": 3, "scale": 1}), options())


def test_names_and_signatures_are_each_others_inverse():
    found = signatures()
    assert len({s.op_type for s in found}) == len(found) == 12
    assert all(Signature.of(s.op_type) == s for s in found)
    for name in ("SkipNormalization_sum_bias", "SkipNormalization_rms_shift", "FlashAttention"):
        with pytest.raises(InputError, match="is no name of"):
            Signature.of(name)
    with pytest.raises(InputError, match="both rms and shift"):
        Signature(rms=True, shift=True)


# ------------------------------------------------------------------------------------------------ special values


@pytest.mark.parametrize("signature", [Signature(), Signature(rms=True)], ids=lambda s: s.op_type)
@pytest.mark.parametrize("name", ["x", "skip"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [3, 39])
def test_nan_and_infinity_stay_in_their_row(signature, name, value, place, options):
    case = Case(name="special", signature=signature, shape=(2, 3, 40))
    inputs = make_inputs(case)
    inputs[name][1, 1, place] = value
    exact, found = reference(signature, case.epsilon, inputs)[0], run_case(case, options(signature.op_type), inputs)[0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
    assert np.isnan(exact[1, 1]).any() and not np.isnan(exact[0]).any()
    np.testing.assert_allclose(found[np.isfinite(exact)], exact[np.isfinite(exact)], atol=2e-6)


@pytest.mark.parametrize("bound", [{"output": "x"}, {"output": "skip"}, {"output": "x", "sum": "skip"}])
def test_outputs_may_be_the_memory_of_inputs(bound, options):
    case = Case(name="place", signature=FULL, shape=(3, 50, 131))
    inputs = make_inputs(case)
    expected = run_case(case, options(), inputs)
    model = one_node_model(FULL, case.epsilon, {n: a.ndim for n, a in inputs.items()})
    session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
    held = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for n, a in inputs.items()}
    binding = session.io_binding()
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for output in FULL.outputs:
        if output in bound:
            binding.bind_ortvalue_output(output, held[bound[output]])
        else:
            binding.bind_output(output, "cpu")
    session.run_with_iobinding(binding)
    for found, exact in zip(binding.get_outputs(), expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), exact)


def test_variance_does_not_lose_its_digits_at_a_large_mean(options):
    """E[x^2] - E[x]^2 in float32 gives a variance of 0 here, and so 60 times the result."""
    case = Case(name="mean", signature=Signature(), shape=(1, 768), mean=4096.0, spread=1.0)
    inputs = make_inputs(case) | {"skip": np.zeros((1, 768), np.float32)}
    exact = reference(case.signature, case.epsilon, inputs)[0]
    np.testing.assert_allclose(run_case(case, options(), inputs)[0], exact, atol=2e-3)


# ------------------------------------------------------------------------------------------------ threads, fallback


def test_bits_do_not_depend_on_threads(options):
    case = Case(name="threads", signature=FULL, shape=(7, 61, 300))
    inputs = make_inputs(case)
    first = run_case(case, options(threads=1), inputs)
    for threads in (2, 3, 5):
        for found, expected in zip(run_case(case, options(threads=threads), inputs), first, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("library", [True, False])
def test_kernel_runs_where_the_library_is_and_the_body_where_it_is_not(library, options, tmp_path):
    made = options(library=library)
    made.enable_profiling = True
    made.profile_file_prefix = str(tmp_path / "profile")
    case = Case(name="which", signature=FULL)
    inputs = make_inputs(case)
    model = one_node_model(FULL, case.epsilon, {n: a.ndim for n, a in inputs.items()})
    session = onnxruntime.InferenceSession(model, made, providers=["CPUExecutionProvider"])
    session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["args"]["op_name"] for event in events if "op_name" in event.get("args", {})}
    assert (FULL.op_type in ran) is library
    assert ("LayerNormalization" in ran) is not library


def test_shapes_are_inferred_and_nothing_is_logged(options, capfd):
    made = options()
    made.log_severity_level = 2
    model = one_node_model(FULL, 1e-5, {"x": 3, "skip": 2, "scale": 1, "shift": 1, "bias": 1})
    session = onnxruntime.InferenceSession(model, made, providers=["CPUExecutionProvider"])
    assert [output.shape for output in session.get_outputs()] == [["x_0", "x_1", "x_2"]] * 2
    session.run(None, make_inputs(Case(name="log", signature=FULL, skip="last")))
    assert capfd.readouterr().err == ""
