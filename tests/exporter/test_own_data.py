"""Parity on the user's own inputs."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import parser

import deployml
from deployml.runtime.errors import InputError

FIXED = """
<ir_version: 10, opset_import: ["": 21]> g (float[2, 8] x) => (float[2, 8] y) { y = Relu(x) }
"""


def inputs(batch, length, *, dtype=np.int64):
    ids = np.arange(batch * length, dtype=dtype).reshape(batch, length) % 50
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_each_file_of_a_folder_is_a_case(deployml_command, exported, tmp_path):
    import torch

    np.savez(tmp_path / "a.npz", **inputs(2, 5))
    torch.save({name: torch.from_numpy(v) for name, v in inputs(1, 9).items()}, tmp_path / "b.pt")
    (tmp_path / "readme.txt").write_text("not an input")
    sibling = exported.with_name("encoder.unfused.onnx")
    ran = deployml_command("validate", exported, "--against", sibling, "--data", tmp_path, "--json")
    assert ran.status == 0, ran.err
    found = json.loads(ran.out)["parity"]["comparisons"]
    assert [(c["case"], c["shape"][:2]) for c in found if c["output"] != "*"][:2] == [
        ("a.npz", [2, 5]),
        ("b.pt", [1, 9]),
    ]


def test_what_a_generator_yields_is_a_case(exported):
    sibling = exported.with_name("encoder.unfused.onnx")
    found = deployml.validate(exported, against=sibling, data=(inputs(1, n) for n in (3, 4))).parity
    assert found.verdict == "pass" and {"data 0", "data 1"} <= {c.case for c in found.comparisons}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"input_ids": np.ones((1, 2), np.int64)}, "the model takes input_ids, attention_mask"),
        (inputs(1, 3, dtype=np.int32), "int32"),
        ({name: v[0] for name, v in inputs(1, 3).items()}, "of 2 axes"),
    ],
)
def test_what_does_not_fit_names_the_file(deployml_command, exported, tmp_path, arrays, words):
    np.savez(tmp_path / "mine.npz", **arrays)
    sibling = exported.with_name("encoder.unfused.onnx")
    ran = deployml_command("validate", exported, "--against", sibling, "--data", tmp_path)
    assert ran.status == 2 and "mine.npz" in ran.err and words in ran.err


def test_a_fixed_axis_of_another_size_names_file_and_axis(tmp_path):
    model = parser.parse_model(FIXED)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"x of data 0 is \[3, 8\], the model takes \[2, 8\]"):
        deployml.validate(tmp_path / "m.onnx", against=tmp_path / "m.onnx", data=[{"x": np.ones((3, 8), np.float32)}])


def test_inputs_of_ones_own_that_the_reference_cannot_run_leave_the_verdict_open(exported):
    sibling = exported.with_name("encoder.unfused.onnx")
    beyond = {**inputs(1, 3), "input_ids": np.full((1, 3), 77, np.int64)}  # the table has 50 rows
    found = deployml.validate(exported, against=sibling, data=[inputs(2, 5), beyond])
    assert found.verdict == "inconclusive"
    assert [note for note in found.parity.notes if note.startswith("data 1 was not compared: the reference")]


def test_an_empty_folder_is_no_comparison(deployml_command, exported, tmp_path):
    ran = deployml_command("validate", exported, "--against", exported, "--data", tmp_path)
    assert ran.status == 2 and "no inputs to compare on" in ran.err
