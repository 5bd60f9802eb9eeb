"""The doctor: what it says of room, of operators, and of an environment with two onnxruntimes."""

from __future__ import annotations

import json
import re

import pytest
from onnx import parser

from deployml.exporter import doctor as module
from deployml.exporter.doctor import doctor
from deployml.exporter.probe import Probed, probe


def test_every_feature_the_table_counts_on_works_here():
    found = probe()
    assert {p.op.split("::")[-1] for p in found} == {"GroupQueryAttention", "MultiHeadAttention", "Attention"}
    assert [f"{p.op} {p.feature}: {p.detail}" for p in found if p.outcome == "worse than the table"] == []
    works = {(p.op.split("::")[-1], p.feature): p.works for p in found}
    assert works["GroupQueryAttention", "grouped heads"] and works["MultiHeadAttention", "padding mask"]
    assert not works["MultiHeadAttention", "softcap"] and not works["MultiHeadAttention", "grouped heads"]


def test_a_feature_that_is_taken_and_ignored_is_seen(monkeypatch):
    import deployml.exporter.probe as probing

    right = probing._expected
    monkeypatch.setattr(probing, "_expected", lambda ask, arrays, causal: right(ask, arrays, causal=causal) * 1.01)
    works, detail = probing._try("com.microsoft::MultiHeadAttention", probing._Ask())
    assert not works and detail.startswith("off by")


def test_what_the_table_counts_on_and_is_not_there_is_a_problem(monkeypatch):
    lost = Probed(op="Attention", feature="bias", claimed=True, works=False, detail="no kernel")
    monkeypatch.setattr(module, "_probed", lambda: (lost,))
    found = doctor(probe=True)
    assert found.verdict == "fail" and "does not do bias" in found.problems[0].what
    assert json.loads(found.to_json())["probed"][0]["feature"] == "bias"


def test_a_sound_machine_ends_with_0_and_says_what_room_there_is(deployml_command, exported):
    ran = deployml_command("doctor", "--model", exported, "--probe")
    assert ran.status == 0, ran.out
    assert "an export writes up to" in " ".join(ran.out.split())
    assert "GroupQueryAttention float32: works" in ran.out
    assert "Traceback" not in ran.err and "ExecuteKernel" not in ran.err


@pytest.mark.parametrize(
    ("name", "words"), [("free_disk", "the disk has no room"), ("available_memory", "memory may not")]
)
def test_too_little_room_is_a_problem(monkeypatch, exported, name, words):
    monkeypatch.setattr(module, name, lambda *_: 1000)
    found = doctor(model=exported)
    assert found.verdict == "fail" and words in found.problems[0].what


def test_a_model_that_cannot_be_read_is_refused(deployml_command, tmp_path):
    ran = deployml_command("doctor", "--model", tmp_path / "none.onnx")
    assert ran.status == 2 and "none.onnx" in ran.err


def test_wheels_and_driver_that_do_not_fit_are_a_problem(monkeypatch):
    monkeypatch.setattr(module, "cuda_versions", lambda: {"onnxruntime": "13.0", "torch": "none", "driver": "12.4"})
    found = doctor()
    assert found.verdict == "fail" and "the driver runs CUDA up to 12.4" in found.problems[0].what
    assert json.loads(found.to_json())["cuda"]["driver"] == "12.4"


def test_a_gpu_wheel_on_a_machine_without_a_driver_is_sound(monkeypatch, deployml_command):
    monkeypatch.setattr(module, "cuda_versions", lambda: {"onnxruntime": "13.0", "torch": "12.8", "driver": "none"})
    ran = deployml_command("doctor")
    assert ran.status == 0
    assert "onnxruntime  13.0" in ran.out and "driver       none" in ran.out


def test_the_nodes_of_a_model_are_counted_by_provider(deployml_command, exported, monkeypatch):
    ran = deployml_command("doctor", "--model", exported)
    assert ran.status == 0
    nodes = re.search(r"Nodes of the model\n +cpu +CPU (\d+) nodes", ran.out)
    assert nodes is not None and int(nodes[1]) > 5
    split = {"CUDAExecutionProvider": 40, "CPUExecutionProvider": 1}
    monkeypatch.setattr(module, "nodes_per_provider", lambda session: split)
    assert doctor(model=exported).nodes["cpu"] == "CUDA 40 nodes, CPU 1 node"


def test_a_model_that_an_optimizer_may_crash_on_is_remarked_and_no_problem(deployml_command, exported, tmp_path):
    text = """<ir_version: 10, opset_import: ["": 20]> g (float16[b,s,4] x, float[4,5] w) => (float[s,b,5] y)
    { t = Transpose <perm = [1, 0, 2]> (x) c = Cast <to = 1> (t) y = MatMul (c, w) }"""
    path = tmp_path / "half.onnx"
    path.write_bytes(parser.parse_model(text).SerializeToString())
    ran = deployml_command("doctor", "--model", path)
    assert ran.status == 0, ran.out
    assert 'disabled_optimizers=["NchwcTransformer"]' in " ".join(ran.out.split())
    assert doctor(model=exported).remarks == ()
