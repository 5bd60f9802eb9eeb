"""FlashAttention against its float64 reference: kernel, function body, instruction sets, fuzzing."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deployml.custom_ops import library_path
from deployml.custom_ops.flash_attention.cases import Case, cases, make_inputs, random_case
from deployml.custom_ops.flash_attention.check import check_case, run_case
from deployml.custom_ops.flash_attention.op import Attributes, Signature, naive, reference

ALL = cases()
FUZZ = int(os.environ.get("DEPLOYML_FUZZ", "2000"))

# Run in a process of its own, because the instruction set is chosen once a process.
ISA_SCRIPT = """
import ctypes, sys
import onnxruntime
from deployml.custom_ops import library_path, register
from deployml.custom_ops.flash_attention.cases import cases
from deployml.custom_ops.flash_attention.check import check_case

chosen = ctypes.CDLL(str(library_path())).deployml_cpu_isa
chosen.restype = ctypes.c_char_p
assert chosen().decode() == sys.argv[1], chosen()
for case in cases()[:: int(sys.argv[2])]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    register(options, only=[case.signature.op_type])
    result = check_case(case, options)
    if not result.passed:
        print(case.name, result.error, result.granted)
print("done")
"""


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_kernel_is_as_exact_as_the_naive_twin_allows(case, options):
    result = check_case(case, options(case.signature.op_type))
    assert result.nan_match
    assert result.error <= result.granted


@pytest.mark.parametrize("case", [c for c in ALL if c.total and c.queries][::3], ids=lambda case: case.name)
def test_function_body_means_the_same(case, options):
    result = check_case(case, options(library=False))
    assert result.passed, (result.error, result.granted)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_other_instruction_sets(isa):
    flags = Path("/proc/cpuinfo").read_text()
    if isa != "portable" and {"avx512": "avx512vl"}.get(isa, isa) not in flags:
        pytest.skip(f"not run: this processor has no {isa}")
    done = subprocess.run(
        [sys.executable, "-c", ISA_SCRIPT, isa, "5"],
        env={**os.environ, "DEPLOYML_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "done\n"


@pytest.mark.parametrize("block", range(4))
def test_random_calls(block, options):
    failed = [r for seed in range(block * 50, block * 50 + 50) if not (r := check(seed, options)).passed]
    assert not failed


@pytest.mark.slow
def test_many_random_calls(options):
    failed = [r for seed in range(1000, 1000 + FUZZ) if not (r := check(seed, options)).passed]
    assert not failed


def check(seed, options):
    case = random_case(seed)
    return check_case(case, options(case.signature.op_type))


def test_reference_agrees_with_a_loop_over_rows():
    """The reference itself, against the definition written out for one head."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 5, 3)) for _ in range(3))
    bias = rng.standard_normal((5, 5))
    signature = Signature(bias=True)
    attributes = Attributes(num_heads=1, kv_heads=1, causal=1, window_left=2, softcap=2.0, scale=0.7)
    given = {"query": q, "key": k, "value": v, "bias": bias}
    expected = np.zeros((5, 3))
    for i in range(5):
        seen = range(max(0, i - 2), i + 1)
        logits = np.array([2.0 * np.tanh(0.7 * (q[0, i] @ k[0, j]) / 2.0) + bias[i, j] for j in seen])
        weights = np.exp(logits) / np.exp(logits).sum()
        expected[i] = sum(w * v[0, j] for w, j in zip(weights, seen, strict=True))
    np.testing.assert_allclose(reference(signature, attributes, given)[0][0], expected, rtol=1e-12)


def test_twin_is_not_the_reference():
    """A bound of twice the twin's error is only a bound when the twin has one."""
    case = Case(name="plain", queries=40, keys=90)
    inputs = make_inputs(case)
    exact = reference(case.signature, case.attributes, inputs)[0]
    assert np.max(np.abs(naive(case.signature, case.attributes, inputs)[0] - exact)) > 0


@pytest.mark.parametrize("wrong", [{"scale": 0.3}, {"causal": 1}, {"softcap": 1.0}, {"window_left": 3}])
def test_bound_is_sharp_enough_to_see_a_wrong_attribute(wrong, options):
    right = Case(name="plain", queries=40, keys=40, options={"scale": 0.25})
    other = Case(name="plain", queries=40, keys=40, options={"scale": 0.25, **wrong})
    inputs = make_inputs(right)
    found = run_case(other, options(), inputs)[0]
    exact = reference(right.signature, right.attributes, inputs)[0]
    assert np.max(np.abs(found - exact)) > 100 * check_case(right, options()).granted


BFLOAT = [
    Case(name="plain", queries=70, keys=70, head_dim=64, value_dim=64, dtype="bfloat16"),
    Case(name="two tiles, odd", queries=53, keys=701, head_dim=18, value_dim=21, dtype="bfloat16"),
    Case(name="causal", queries=131, keys=131, head_dim=80, value_dim=48, dtype="bfloat16", options={"causal": 1}),
    Case(
        name="window from an odd key",
        queries=65,
        keys=65,
        head_dim=16,
        value_dim=16,
        dtype="bfloat16",
        options={"window_left": 6, "window_right": 2},
    ),
    Case(name="odd head", queries=30, keys=50, head_dim=17, value_dim=16, dtype="bfloat16"),
    Case(name="few rows", queries=3, keys=50, head_dim=16, value_dim=16, dtype="bfloat16"),
]


@pytest.mark.parametrize("case", BFLOAT, ids=lambda case: case.name)
def test_bfloat16_is_within_two_roundings_of_the_weighted_values(case, options):
    """The output is rounded, and where bfloat16 is multiplied as it is the weights too: 2^-8 at most each."""
    inputs = make_inputs(case)
    narrow = {name: x.astype(np.float64) for name, x in inputs.items()}
    exact = reference(case.signature, case.attributes, narrow)[0]
    sizes = reference(case.signature, case.attributes, {**narrow, "value": np.abs(narrow["value"])})[0]
    found = run_case(case, options(case.signature.op_type), inputs)[0]
    assert np.all(np.abs(found - exact) <= 2 * 2.0**-8 * sizes + 1e-6)


def test_bfloat16_is_multiplied_as_it_is_where_the_machine_can():
    pairs = ctypes.CDLL(str(library_path())).deployml_cpu_multiplies_bfloat16
    assert pairs() == int("avx512_bf16" in Path("/proc/cpuinfo").read_text())
