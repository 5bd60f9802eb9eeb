"""optimize holds its result against the file it was given, not against what it made of that file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest

import deployml
from deployml.exporter import optimize as module

TEXT = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S] x) => (float[B,4,S] y) {
  n = Neg (x)
  y = Softmax <axis = -1> (n)
}"""


@pytest.fixture
def given(tmp_path: Path) -> Path:
    path = tmp_path / "given.onnx"
    onnx.save(ir.to_proto(ir.from_onnx_text(TEXT)), path)
    return path


def damaged(model: ir.Model, wanted: int | None) -> tuple[str, ...]:
    """A conversion that goes wrong."""
    model.graph[0].op_type = "Abs"
    return ()


def test_a_fault_of_the_conversion_fails_the_verdict(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"html": False}
    right = deployml.optimize(given, output=given.with_name("right.onnx"), **options).report
    assert (right.parity.verdict, right.parity.reference) == ("pass", "the given graph in onnxruntime")
    monkeypatch.setattr(module, "lift_opset", damaged)
    wrong = deployml.optimize(given, output=given.with_name("wrong.onnx"), **options).report
    assert (wrong.verdict, wrong.parity.verdict) == ("fail", "fail")


def test_a_model_in_memory_is_held_against_its_unfused_graph(given: Path) -> None:
    report = deployml.optimize(onnx.load(given), output=given.with_name("out.onnx"), html=False).report
    assert (report.parity.verdict, report.parity.reference) == ("pass", "the unfused graph in onnxruntime")
