"""The benchmarks whose numbers the product reads or the pages state still run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def run(*arguments: str) -> str:
    """What a benchmark prints, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / arguments[0]), *arguments[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_costs_are_measured_for_every_kind_and_kept_for_longer_rows(tmp_path: Path) -> None:
    page = tmp_path / "costs.json"
    run("costs.py", "--seconds", "0.01", "--longest", "32", "--page", str(page))
    (isa, rows), *others = json.loads(page.read_text())["isa"].items()
    assert not others
    assert {row["length"] for row in rows} == {16, 32}
    assert {row["kind"] for row in rows} == {"plain", "causal", "mask", "bias", "causal+mask", "causal+bias"}
    assert all(taken > 0 for row in rows for taken in row["microseconds"].values())
    run("costs.py", "--only", "plain", "--seconds", "0.01", "--longest", "16", "--page", str(page))
    assert len(json.loads(page.read_text())["isa"][isa]) == len(rows)


def test_attention_is_compared_with_its_rivals() -> None:
    printed = run("attention.py", "--only", "plain 16", "--threads", "1", "--seconds", "0.1")
    assert "plain 16" in printed
    assert "ai.onnx Attention" in printed
