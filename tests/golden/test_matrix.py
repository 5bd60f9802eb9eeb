"""The compatibility page: what it says of rows that are the same, other, failed, or could not be measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from . import matrix

BASE = {"packages": [], "versions": {"onnxruntime": "1.31.1", "onnx": "1.23.2"}, "models": {}}


def row(*packages, **outcomes):
    models = {name: {"outcome": outcome, "said": f"{name} said|so"} for name, outcome in outcomes.items()}
    return {"packages": list(packages), "versions": BASE["versions"], "models": models}


def test_the_page_counts_and_explains():
    rows = [
        {**BASE, "models": row(bert="same", vit="same")["models"]},
        row("onnxruntime==1.22.1", bert="other", vit="fails"),
        {"packages": ["onnx==0.1"], "failed": "pip: no | such"},
        {"packages": ["onnx==0.2"]},
    ]
    page = matrix.page(rows)
    assert "| onnxruntime 1.31.1 (this project's own) | 2 of 2 | 0 | 0 |" in page
    assert "| onnxruntime 1.22.1 | 0 of 2 | 1 | vit |" in page
    assert "| onnx 0.2 | not run | | |" in page
    assert "| onnx 0.1 | - | - | all: pip: no \\| such |" in page
    assert "- onnxruntime 1.22.1: bert: bert said|so" in page and "vit said|so" in page


def test_an_environment_sees_what_is_behind_it_and_its_own_first(tmp_path):
    python = matrix._environment(tmp_path / "venv", ())
    own = next((tmp_path / "venv").glob("lib/python3.*/site-packages"))
    (own / "onnxruntime.py").write_text("__version__ = 'its own'\n")
    code = "import onnxruntime, numpy; print(onnxruntime.__version__, numpy.__name__)"
    ran = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.split("\n")[0] == "its own numpy", ran.stderr


def test_a_row_that_breaks_is_said_so(monkeypatch):
    monkeypatch.setattr(matrix, "_environment", lambda folder, packages: Path(sys.executable))
    monkeypatch.setattr(matrix.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 139, "", "boom\nlast"))
    assert "139" in matrix.tried(["x==1"])["failed"]


def test_the_page_that_is_kept_has_every_row():
    said = matrix.PAGE.read_text()
    for packages in matrix.ROWS:
        assert "(this project's own)" in said if not packages else packages[0].replace("==", " ") in said
