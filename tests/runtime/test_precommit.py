"""The pre-commit hook: which models it checks, and what it says of them."""

from __future__ import annotations

import re
import subprocess
import sys

import onnx
import pytest
from onnx import parser

import deployml
from deployml.runtime.integrations.precommit import models_of

MODEL = '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a locked model and one without a lock."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "b.onnx"):
        onnx.save(parser.parse_model(MODEL), tmp_path / name)
    deployml.lock("a.onnx")
    return tmp_path


def test_only_locked_models_are_checked_each_once(project):
    assert [str(p) for p in models_of(["a.onnx", "a.lock.json", "b.onnx", "a.onnx.data", "c.txt"])] == ["a.onnx"]


def test_a_changed_model_stops_the_commit(project):
    command = [sys.executable, "-m", "deployml.runtime.integrations.precommit", "a.lock.json", "b.onnx"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    onnx.save(parser.parse_model(MODEL.replace("Relu", "Neg")), project / "a.onnx")
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 1 and "Neg 0 -> 1, Relu 1 -> 0" in " ".join(ran.stdout.split())


def test_the_hook_file_names_the_module_and_fits_the_files(checkout):
    text = (checkout / ".pre-commit-hooks.yaml").read_text()
    assert "python -m deployml.runtime.integrations.precommit" in text
    files, exclude = (re.search(rf"^  {key}: '(.*)'$", text, re.M)[1] for key in ("files", "exclude"))
    wanted = {"m/a.onnx": True, "a.lock.json": True, "a.onnx.data": True, "a.unfused.onnx": False, "a.pt": False}
    for name, checked in wanted.items():
        assert bool(re.search(files, name) and not re.search(exclude, name)) is checked, name
