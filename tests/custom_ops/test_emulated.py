"""The GPU kernels, compiled for the emulator, against the float64 reference.

The emulated library runs in onnxruntime's CPU provider, so binding, launcher, workspace and kernels are all those of
the CUDA and HIP libraries; what differs is the seam below them. A fault the emulator sees fails the node.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import deployml.custom_ops
from deployml.custom_ops.flash_attention.cases import Case, cases, make_inputs, random_case
from deployml.custom_ops.flash_attention.check import check_case, one_node_model, run_case
from deployml.custom_ops.flash_attention.op import reference

from .conftest import build_emulated

DEVICES = ("nvidia", "cdna", "rdna")
SOURCES = Path(next(p for p in deployml.custom_ops.__path__ if (Path(p) / "emulator").is_dir()))

#: The matrix, the float32 cases also in half precision: that is what the matrix units are for. A case that needs
#: more exponent than float16 has stays what it is.
MATRIX = [
    *cases(),
    *(
        dataclasses.replace(case, name=f"{case.name} as {dtype}", dtype=dtype)
        for case in cases()
        for dtype in ("float16", "bfloat16")
        if case.dtype == "float32" and (case.fill is None or case.fill > -6e4)
    ),
]


def options(library: Path) -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 4
    made.register_custom_ops_library(str(library))
    return made


def failures(library: Path, chosen: list[Case]) -> list[str]:
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


# ---------------------------------------------------------------------------------------------- everyday

#: One call for each thing a kernel can get wrong, small.
EVERYDAY = [
    Case(name="odd sizes", queries=37, keys=70, head_dim=37, value_dim=21, heads=4, dtype="float16"),
    Case(name="even sizes", queries=17, keys=66, head_dim=40, value_dim=24, heads=4, dtype="float16"),
    Case(name="large head", queries=20, keys=75, head_dim=200, value_dim=256, dtype="bfloat16", layout="bnsh"),
    Case(name="causal, grouped", queries=70, keys=70, heads=6, head_dim=64, value_dim=64, options={"causal": 1}),
    Case(
        name="window, lengths, past",
        queries=9,
        keys=9,
        past=131,
        heads=4,
        lengths=(140, 77),
        dtype="float16",
        options={"causal": 1, "lower_right": 1, "window_left": 40},
    ),
    Case(name="mask with empty rows", queries=33, keys=66, mask="bk", lengths=(0, 66), dtype="bfloat16"),
    Case(name="padding as finfo.min", queries=16, keys=80, bias="bk", fill=-3.4e38, excluded="left", dtype="bfloat16"),
    Case(
        name="all that is added",
        queries=40,
        keys=90,
        heads=4,
        bias="hqk",
        slopes=True,
        sink=True,
        dtype="float16",
        options={"softcap": 5.0},
    ),
    Case(name="decoding", queries=1, keys=513, heads=8, head_dim=64, value_dim=64, dtype="float16"),
    Case(name="no key", queries=3, keys=0, sink=True, dtype="float16"),
    Case(name="table, weights", queries=20, keys=70, table=9, weights=True, dtype="float16", options={"causal": 1}),
    Case(name="cache", cache=90, queries=3, keys=3, lengths=(90, 2), heads=4, dtype="bfloat16", layout="bnsh"),
    Case(name="float32 decoding", queries=2, keys=300, heads=4, options={"causal": 1, "lower_right": 1}),
]


@pytest.mark.parametrize("multiprocessors", [1, 100])
@pytest.mark.parametrize("name", DEVICES)
def test_kernels_agree_with_the_reference(name, multiprocessors, library, device):
    device(name, multiprocessors)
    assert not failures(library, EVERYDAY)


@pytest.mark.parametrize("name", DEVICES)
def test_random_calls(name, library, device):
    device(name, 20, seed=7)
    assert not failures(library, [random_case(seed) for seed in range(10)])


def test_lengths_on_the_device_are_bounded(library, device):
    """Nobody can look at them before the launch: a wrong one must neither fail nor leave the tensors."""
    device("nvidia")
    case = Case(name="wrong lengths", queries=5, keys=20, lengths=(20, 0), dtype="float16")
    inputs = make_inputs(case)
    exact = reference(case.signature, case.attributes, inputs)[0]
    found = run_case(case, options(library), {**inputs, "key_lengths": np.array([1 << 30, -7], np.int32)})[0]
    np.testing.assert_allclose(found, exact, atol=2e-3)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_come_out_where_they_must(name, value, library, device):
    device("nvidia")
    case = Case(name="special", batch=1, queries=30, keys=39, dtype="float16")
    inputs = make_inputs(case)
    inputs[name][0, -1, 3] = value
    with np.errstate(all="ignore"):
        exact = reference(case.signature, case.attributes, inputs)[0]
    np.testing.assert_array_equal(np.isnan(run_case(case, options(library), inputs)[0]), np.isnan(exact))


def test_cache_bound_to_both_ends_is_written_in_place(library, device):
    """One memory for past and present: the new rows change, no other is touched, no byte twice."""
    device("nvidia")
    case = Case(name="shared", cache=40, queries=2, keys=2, lengths=(40, 1), layout="bnsh", heads=4)
    inputs = make_inputs(case)
    expected = run_case(case, options(library), inputs)
    model = onnx.load_from_string(one_node_model(case.signature, case.attributes, inputs))
    nodes = [node for node in model.graph.node if node.op_type != "Cast"]  # what the node writes is bound itself
    for output, name in zip(model.graph.output, nodes[0].output, strict=True):
        output.name = name
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options(library))
    binding = session.io_binding()
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array.copy()) for name, array in inputs.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output(session.get_outputs()[0].name, "cpu")
    for output, name in zip(session.get_outputs()[1:], ("past_key", "past_value"), strict=True):
        binding.bind_ortvalue_output(output.name, held[name])
    session.run_with_iobinding(binding)
    found = [binding.get_outputs()[0].numpy(), held["past_key"].numpy(), held["past_value"].numpy()]
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_same_bits_whatever_the_order_of_threads(library, device):
    case = EVERYDAY[1]
    bits = set()
    for seed in (1, 2, 3):
        device("nvidia", 100, seed)
        bits.add(run_case(case, options(library))[0].tobytes())
    assert len(bits) == 1


def test_a_head_size_beyond_the_library_is_refused_by_name(library, device):
    device("nvidia")
    with pytest.raises(Exception, match="built for smaller head sizes"):
        run_case(Case(name="head 300", head_dim=300, value_dim=300, queries=2, keys=2), options(library))


# ---------------------------------------------------------------------------------------------- long


@pytest.mark.slow
@pytest.mark.parametrize("multiprocessors", [1, 64])
@pytest.mark.parametrize("name", DEVICES)
def test_whole_matrix(name, multiprocessors, full_library, device):
    device(name, multiprocessors, seed=multiprocessors)
    assert not failures(full_library, MATRIX)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEVICES)
def test_many_random_calls(name, full_library, device):
    device(name, 20)
    assert not failures(full_library, [random_case(seed, largest=120) for seed in range(5000, 5300)])


#: Breakages of the sources, and what must come of them: a fault of the emulator, or a wrong result.
BREAKAGES = {
    "no barrier before a stage is written again": (
        "kernel.cuh",
        "gpu::sync_block();  // before the stage is written again",
        "",
        "without a barrier",
    ),
    "no barrier after copies": (
        "kernel.cuh",
        "gpu::sync_block();\n      if (first_row",
        "if (first_row",
        "shared byte",
    ),
    "a copy not waited for": ("kernel.cuh", "gpu::copy_wait<1>()", "gpu::copy_wait<2>()", "under way"),
    "copies not counted": (
        "kernel.cuh",
        "gpu::copy_commit();\n      gpu::copy_wait<0>();",
        "gpu::copy_wait<0>();",
        "under way",
    ),
    "a row too many": (
        "tile.cuh",
        "const bool valid = first + row < end;",
        "const bool valid = first + row <= end;",
        "outside",
    ),
    "a column too many": ("tile.cuh", "if (column + i >= dim) continue;", "", "outside|granted|>"),
    "operands of the product exchanged": ("unit_mma.cuh", "a, b[0], b[1]", "a, b[1], b[0]", ">"),
    "values not transposed": ("unit_mma.cuh", "gpu::load_matrix_transposed", "gpu::load_matrix", ">"),
    "the last key cut": ("rows.cuh", "key >= row.keys.end) s[e]", "key >= row.keys.end - 1) s[e]", ">"),
    "too little shared memory": ("kernel.cuh", "size_t(warps) * Unit::kQueryBytes +", "", "the block has"),
    "a part of the keys forgotten": (
        "kernel.cuh",
        "float x = 0.0f;\n      for (int i = 0;",
        "float x = 0.0f;\n      for (int i = 1;",
        ">",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_kernel_is_seen(breakage, tmp_path, device, monkeypatch):
    name, old, new, said = BREAKAGES[breakage]
    copied = tmp_path / "custom_ops"
    shutil.copytree(SOURCES, copied, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    source = copied / "flash_attention" / name
    text = source.read_text()
    assert old in text
    source.write_text(text.replace(old, new))
    monkeypatch.setattr("deployml.custom_ops.build.__file__", str(copied / "build.py"))
    library = build_emulated("reduced", tmp_path)
    device("nvidia", 100)
    found = failures(library, EVERYDAY)
    assert found
    assert any(re.search(said, text) for text in found), found
