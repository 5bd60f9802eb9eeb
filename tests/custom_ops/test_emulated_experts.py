"""The GPU kernels of MixtureOfExperts, compiled for the emulator, against the float64 reference."""

from __future__ import annotations

import dataclasses
import re
import shutil

import numpy as np
import onnxruntime
import pytest

from deployml.custom_ops.mixture_of_experts import Attributes, Signature, reference
from deployml.custom_ops.mixture_of_experts.cases import CLAMPED, Case, cases, make_inputs, random_case
from deployml.custom_ops.mixture_of_experts.check import check_case, run_case

from .conftest import build_emulated
from .test_emulated import DEVICES, SOURCES, options

FULL = Signature(gated=True, bias=True)

#: The matrix, the float32 cases also in half precision: that is what the matrix units are for.
MATRIX = [
    *cases(),
    *(
        dataclasses.replace(case, name=f"{case.name} as {dtype}", dtype=dtype)
        for case in cases()
        for dtype in ("float16", "bfloat16")
        if case.dtype == "float32"
    ),
]

#: One call for each thing a kernel can get wrong, small.
EVERYDAY = [
    Case(name="odd sizes", signature=FULL, hidden=37, inner=21, dtype="float16"),
    Case(name="even sizes", signature=FULL, hidden=40, inner=72, tokens=(20,), dtype="bfloat16"),
    Case(name="several steps and tiles", signature=FULL, hidden=136, inner=144, tokens=(70,), count=2, dtype="float16"),
    Case(name="several tiles, float32", signature=Signature(bias=True), hidden=70, inner=67, tokens=(90,), count=2),
    Case(name="clamped", signature=FULL, attributes=CLAMPED, spread=6.0, dtype="float16"),
    Case(name="one token", signature=Signature(gated=True), tokens=(1,), count=40, dtype="bfloat16"),
    Case(name="outside", signature=FULL, route="outside", each=3, dtype="float16"),
    Case(name="repeated", signature=FULL, route="repeated", each=3),
    Case(name="one", signature=FULL, route="one", tokens=(2, 40), dtype="bfloat16"),
    Case(name="no choice", signature=FULL, each=0, dtype="float16"),
    Case(name="no token", signature=FULL, tokens=(0,)),
    *(Case(name=a, signature=Signature(activation=a), dtype="float16") for a in ("gelu", "gelu_tanh", "relu")),
    Case(name="squared", signature=Signature(activation="relu_squared", gated=True), dtype="bfloat16"),
]


def failures(library, chosen: list[Case]) -> list[str]:
    """The cases that are off or faulty, each with what was found."""
    found = []
    for case in chosen:
        try:
            result = check_case(case, options(library))
        except onnxruntime.capi.onnxruntime_pybind11_state.Fail as fault:
            found.append(f"{case.name}: {fault}")
            continue
        if not result.passed:
            found.append(f"{case.name}: {result.error} > {result.granted} or NaN elsewhere")
    return found


@pytest.mark.parametrize("name", DEVICES)
def test_kernels_agree_with_the_reference(name, library, device):
    device(name)
    assert not failures(library, EVERYDAY)


@pytest.mark.parametrize("name", DEVICES)
def test_random_calls(name, library, device):
    device(name, seed=7)
    assert not failures(library, [random_case(seed) for seed in range(10)])


@pytest.mark.parametrize("name", ["x", "inner", "outer", "weights"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_come_out_where_they_must(name, value, library, device):
    device("nvidia")
    case = Case(name="special", signature=FULL, tokens=(30,), dtype="float16")
    inputs = make_inputs(case)
    inputs[name][(1,) * inputs[name].ndim] = value
    exact = reference(FULL, case.attributes, inputs)[0]
    assert not np.isfinite(exact).all()
    np.testing.assert_array_equal(np.isnan(run_case(case, options(library), inputs)), np.isnan(exact))


def test_the_same_bits_whatever_the_order_of_threads(library, device):
    bits = set()
    for seed in (1, 2, 3):
        device("nvidia", 100, seed)
        bits.add(run_case(EVERYDAY[2], options(library)).tobytes())
    assert len(bits) == 1


def test_no_experts_and_no_inner_size(library, device):
    device("nvidia")
    inputs = make_inputs(Case(name="empty", signature=FULL))
    for shapes in (
        {"inner": (4, 0, 48), "outer": (4, 48, 0), "inner_bias": (4, 0)},
        {"inner": (0, 80, 48), "outer": (0, 48, 40), "inner_bias": (0, 80), "outer_bias": (0, 48)},
    ):
        given = {**inputs, **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()}}
        found = run_case(Case(name="empty", signature=FULL), options(library), given)
        np.testing.assert_allclose(found, reference(FULL, Attributes(), given)[0], atol=1e-6)


# ---------------------------------------------------------------------------------------------- long


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_whole_matrix(name, library, device):
    device(name)
    assert not failures(library, MATRIX)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_many_random_calls(name, library, device):
    device(name)
    assert not failures(library, [random_case(seed) for seed in range(5000, 5150)])


#: Breakages of the sources, and what must come of them: a fault of the emulator, or a wrong result.
BREAKAGES = {
    "no barrier before counts are read": (
        "gpu::sync_block();\n  int start",
        "int start",
        "without a barrier|shared byte",
    ),
    "no barrier before a stage is written again": (
        "gpu::sync_block();  // before the stage is written again",
        "",
        "without a barrier",
    ),
    "a copy not waited for": ("gpu::copy_wait<1>()", "gpu::copy_wait<2>()", "under way"),
    "a row too many": (
        "product.rows[r] = row < tile.end ? static_cast",
        "product.rows[r] = row <= tile.end ? static_cast",
        "outside|nobody wrote",
    ),
    "a column too many": ("if (column >= p.hidden) continue;", "if (column > p.hidden) continue;", "outside|again|>"),
    "the last step of the depth forgotten": ("k < depth; k += kStep", "k + kStep < depth; k += kStep", ">"),
    "too little shared memory": ("size_t(warps) * Unit::kQueryBytes + size_t(Unit", "size_t(Unit", "the block has"),
    "weights of the expert before": (
        "tile.expert * made + int64_t(h)",
        "(tile.expert - 1) * made + int64_t(h)",
        "outside|>",
    ),
    "another activation": ("(1.0f + e);\n}", "(1.0f + e) * 0.99f;\n}", ">"),
    "slots out of their order": ("start + place++, s)", "start + place++, s ^ 1)", "outside|>"),
    "a choice forgotten": ("for (int k = 0; k < p.each; ++k)", "for (int k = 1; k < p.each; ++k)", ">"),
    "an index outside taken": ("chosen >= 0 && chosen < p.count)", "chosen < p.count)", "nobody wrote"),
}


@pytest.mark.slow
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_kernel_is_seen(breakage, tmp_path, device, monkeypatch):
    old, new, said = BREAKAGES[breakage]
    copied = tmp_path / "custom_ops"
    shutil.copytree(SOURCES, copied, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    source = copied / "mixture_of_experts" / "kernel.cuh"
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    monkeypatch.setattr("deployml.custom_ops.build.__file__", str(copied / "build.py"))
    library = build_emulated("reduced", tmp_path)
    device("nvidia", 100)
    found = failures(library, EVERYDAY)
    assert found
    assert any(re.search(said, text) for text in found), found
