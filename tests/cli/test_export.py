"""``deployml export`` end to end on a small model: files, exit status, JSON, and every mistake a user can make."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

QUICK = ("--no-bench",)


def test_writes_model_sibling_and_report(deployml_command, encoder, tmp_path):
    ran = deployml_command("export", *encoder.options, "-o", tmp_path / "x.onnx", "--bench-seconds", "0.5")
    assert ran.status == 0, ran.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.onnx", "x.report.html", "x.report.json", "x.unfused.onnx"]
    assert "2 of 2 attentions fused" in ran.out
    assert "Traceback" not in ran.err
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert [site["status"] for site in report["sites"]] == ["fused", "fused"]
    assert [site["module_path"] for site in report["sites"]] == ["layers.0", "layers.1"]
    assert all(site["source"].startswith("small_encoder.py:") for site in report["sites"])
    assert report["parity"]["verdict"] == "pass"
    assert {c["name"] for c in report["latency"]["contenders"]} == {"eager", "unfused", "fused"}
    assert {stage["name"] for stage in report["stages"]} >= {"load", "trace", "translate", "write", "validate", "bench"}


def test_json_is_the_report_and_nothing_else(deployml_command, encoder, tmp_path):
    ran = deployml_command("export", *encoder.options, "-o", tmp_path / "x.onnx", *QUICK, "--json")
    assert ran.status == 0, ran.err
    assert ran.out == (tmp_path / "x.report.json").read_text()
    assert json.loads(ran.out)["schema"].startswith("1.")
    assert json.loads(ran.out)["not_run"] == {"bench": "switched off (--no-bench)"}


def test_skipped_checks_are_said(deployml_command, encoder, tmp_path):
    ran = deployml_command("export", *encoder.options, "-o", tmp_path / "x.onnx", *QUICK, "--no-validate")
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "x.report.json").read_text())
    assert report["parity"] is None and set(report["not_run"]) == {"bench", "validate"}
    assert report["verdict"] == "not-run" and ran.out.startswith("NOT RUN") and "Not run" in ran.out


def test_unfused_export(deployml_command, encoder, tmp_path):
    ran = deployml_command("export", *encoder.options, "-o", tmp_path / "x.onnx", *QUICK, "--no-fuse-attention")
    assert ran.status == 0, ran.err
    ops = {node.op_type for node in onnx.load(tmp_path / "x.onnx").graph.node}
    assert "Softmax" in ops and "MultiHeadAttention" not in ops
    assert "--no-fuse-attention" in ran.out


def test_require_fused_names_module_and_line_and_writes_nothing(deployml_command, encoder, tmp_path):
    arguments = ("export", *encoder.odd_options, "-o", tmp_path / "x.onnx", *QUICK, "--require-fused", "all")
    ran = deployml_command(*arguments)
    assert ran.status == 1
    line = 1 + next(
        i for i, text in enumerate(encoder.code.read_text().splitlines()) if "weights = torch.softmax" in text
    )
    assert f"layers.1 (small_encoder.py:{line}): weights-changed" in ran.err
    assert "layers.0" not in ran.err
    assert "->" in ran.err and "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []
    ran = deployml_command(*arguments, "--json")
    found = json.loads(ran.out)
    assert ran.status == found["error"]["exit_code"] == 1
    assert [site["status"] for site in found["sites"]] == ["fused", "declined"]


def test_require_fused_takes_a_number(deployml_command, encoder, tmp_path):
    export = ("export", *encoder.odd_options, "-o", tmp_path / "x.onnx", *QUICK, "--no-validate", "--require-fused")
    assert deployml_command(*export, "1").status == 0
    assert deployml_command(*export, "2").status == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "tpu"], "tpu"),
        (["--opset", "9"], "--opset 20 to 23"),
        (["--min-onnxruntime", "1.2"], "1.22"),
        (["--min-onnxruntime", "new"], "version"),
        (["--require-fused", "most"], "--require-fused all, or a number"),
        (["--require-fused", "0"], "--require-fused all, or a number"),
        (["--require-fused", "all", "--no-fuse-attention"], "leave one of the two out"),
        (["--disable-fusion", "XYZ999"], "XYZ999"),
        (["--external-data", "maybe"], "auto, always, never"),
        (["--input", "nonsense"], "--input"),
        (["--factory", "no_such_module:build"], "no_such_module"),
        (["--factory", "FOLDER/small_encoder.py:missing"], "missing"),
        (["-o", "FOLDER/x.txt"], ".onnx"),
        (["-o", "FOLDER/encoder.pt/x.onnx"], "not a folder"),
        (["--inputs", "FOLDER/none.npz"], "none.npz"),
        (["--nope"], "--nope"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_message_and_status_2(deployml_command, encoder, tmp_path, arguments, said):
    given = [argument.replace("FOLDER", str(encoder.code.parent)) for argument in arguments]
    ran = deployml_command("export", *encoder.options, "-o", tmp_path / "x.onnx", *QUICK, *given)
    assert ran.status == 2, ran.err
    assert said in ran.err
    assert "Traceback" not in ran.err and ran.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no model at all"], ids=["empty", "cut", "text"])
def test_a_damaged_source(deployml_command, tmp_path, content):
    (tmp_path / "model.pt").write_bytes(content)
    ran = deployml_command("export", tmp_path / "model.pt", "-o", tmp_path / "x.onnx", "--json")
    found = json.loads(ran.out)["error"]
    assert ran.status == found["exit_code"] == 2
    assert found["kind"] == "InputError" and "model.pt" in found["message"] and found["hint"]
    assert not (tmp_path / "x.onnx").exists()


def test_a_missing_source(deployml_command, tmp_path):
    ran = deployml_command("export", tmp_path / "none.pt", "-o", tmp_path / "x.onnx")
    assert ran.status == 2 and "none.pt" in ran.err and "->" in ran.err


def test_debug_shows_the_traceback(deployml_command, tmp_path):
    ran = deployml_command("--debug", "export", tmp_path / "none.pt", "-o", tmp_path / "x.onnx")
    assert ran.status == 2 and "Traceback" in ran.err


def test_an_earlier_export_survives_a_failed_one(deployml_command, encoder, tmp_path):
    output = tmp_path / "x.onnx"
    assert deployml_command("export", *encoder.options, "-o", output, *QUICK, "--no-validate").status == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert deployml_command("export", *encoder.odd_options, "-o", output, *QUICK, "--require-fused", "all").status == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_external_data_is_one_file_for_both_graphs(deployml_command, encoder, tmp_path):
    output = tmp_path / "x.onnx"
    export = ("export", *encoder.options, "-o", output, *QUICK, "--external-data")
    assert deployml_command(*export, "always").status == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"x.onnx", "x.onnx.data", "x.unfused.onnx", "x.report.html", "x.report.json"}
    graphs = [onnx.load(tmp_path / name, load_external_data=False) for name in ("x.onnx", "x.unfused.onnx")]
    used = [
        {entry.value for tensor in graph.graph.initializer for entry in tensor.external_data if entry.key == "location"}
        for graph in graphs
    ]
    assert used == [{"x.onnx.data"}, {"x.onnx.data"}]
    fused_bytes = sum(np.prod(t.dims) * 4 for t in graphs[0].graph.initializer if t.external_data)
    assert (tmp_path / "x.onnx.data").stat().st_size < 1.6 * fused_bytes
    assert deployml_command(*export, "never").status == 0
    assert "x.onnx.data" not in {p.name for p in tmp_path.iterdir()}


def test_same_bytes_in_any_folder_with_any_hash_seed(encoder, python, tmp_path):
    produced = []
    for seed, folder in (("1", tmp_path / "a"), ("77", tmp_path / "some" / "other")):
        folder.mkdir(parents=True)
        command = [python, "-m", "deployml.cli", "export", *encoder.options, "-o", "x.onnx", *QUICK, "--no-validate"]
        done = subprocess.run(
            command, cwd=folder, env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        produced.append({name: (folder / name).read_bytes() for name in ("x.onnx", "x.unfused.onnx")})
    assert produced[0] == produced[1]
    for content in produced[0].values():
        assert str(tmp_path).encode() not in content and b"site-packages" not in content
        assert str(encoder.code.parent).encode() not in content


def test_default_output_is_named_after_the_source(deployml_command, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert deployml_command("export", *encoder.options, *QUICK, "--no-validate").status == 0
    assert Path("encoder.onnx").is_file()
