"""How commands end: a reader that is gone, places that cannot be written, and verdicts that are told all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from deployml.exporter import validate as module
from deployml.runtime.drift import CheckReport, Finding
from deployml.runtime.errors import InputError

FOUND = CheckReport(verdict="pass", model="m.onnx", lock="m.lock.json")
LOST = Finding(kind="site", where="layers.0", text="no longer fused")


@pytest.mark.parametrize("form", [("--json",), ()])
def test_a_reader_that_is_gone_is_told_by_the_status(form):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "deployml.cli", "explain", "ATT102", *form]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == ""


def test_a_file_that_cannot_be_written_is_refused_before_the_check(deployml_command, tmp_path, monkeypatch):
    monkeypatch.setattr("deployml.exporter.check.check", lambda *_, **__: pytest.fail("the check began"))
    (tmp_path / "file").write_text("")
    ran = deployml_command("check", "m.onnx", "--junit", tmp_path / "file" / "j.xml")
    assert ran.status == 2 and "j.xml" in ran.err and " -o" not in ran.err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    ran = deployml_command("check", "m.onnx", "--github")
    assert ran.status == 2 and "folder of that name" in ran.err


@pytest.mark.parametrize(("findings", "status"), [((), 2), ((LOST,), 1)])
def test_a_report_is_shown_though_a_file_fails_afterwards(deployml_command, tmp_path, monkeypatch, findings, status):
    found = replace(FOUND, verdict="fail" if findings else "pass", findings=findings)
    monkeypatch.setattr("deployml.exporter.check.check", lambda *_, **__: found)

    def full(*_, **__):
        raise InputError("'j.xml' cannot be written: the disk is full", hint="free some space")

    monkeypatch.setattr("deployml.runtime.integrations.ci.tell", full)
    ran = deployml_command("check", "m.onnx", "--json")
    assert (ran.status, json.loads(ran.out)["verdict"]) == (status, found.verdict)
    assert "the disk is full" in ran.err


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="not run: needs a folder in which nothing can be made")
def test_where_no_folder_can_be_made_is_a_message(deployml_command, monkeypatch):
    monkeypatch.setattr("deployml.exporter.check.check", lambda *_, **__: FOUND)
    ran = deployml_command("check", "m.onnx", "--junit", "/proc/nowhere/j.xml")
    assert ran.status == 2 and "/proc/nowhere/j.xml' cannot be written" in ran.err and "Traceback" not in ran.err
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/proc/nowhere/page.md")
    ran = deployml_command("check", "m.onnx", "--github")
    assert ran.status == 2 and "cannot be written" in ran.err and "Traceback" not in ran.err


def test_a_failed_comparison_is_told_where_no_minimal_model_can_be_written(
    deployml_command, encoder, exported, monkeypatch
):
    def read_only(path, data):
        raise InputError(f"'{path}' cannot be written: the file system is read-only", hint="choose another folder")

    monkeypatch.setattr(module, "atomic_write", read_only)
    code = encoder.code.with_name("spoilt.onnx")
    _spoil(exported, code)
    code.with_name("spoilt.unfused.onnx").write_bytes(exported.with_name("encoder.unfused.onnx").read_bytes())
    ran = deployml_command("validate", code, "--against", exported.with_name("encoder.unfused.onnx"))
    assert ran.status == 1 and ran.out.startswith("FAIL"), ran.err
    assert "no minimal model" in " ".join(ran.out.split())


def _spoil(source, place):
    """The same model with one weight three times as large."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    weight = next(w for w in model.graph.initializer if len(w.dims) == 2 and w.dims[0] == w.dims[1] == 64)
    weight.CopyFrom(numpy_helper.from_array(np.array(3 * numpy_helper.to_array(weight)), weight.name))
    onnx.save(model, place)


def test_check_looks_for_the_model_first(deployml_command, tmp_path):
    ran = deployml_command("check", tmp_path / "none.onnx")
    assert ran.status == 2 and "there is no file" in ran.err and "lock" not in ran.err
