"""Decoders whose mask has an axis of its own, "total", are compared, checked and timed at sizes that they take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import deployml

_GRAPH = """<ir_version: 10, opset_import: ["" : 20]>
g (int64[B,S] ids, int64[B,T] mask, float[B,2,P,4] past_k, float[B,2,P,4] past_v) => (float[B,2,S,4] y)
<int64[4] apart = {0, 0, 2, 4}, int64[2] ahead = {1, 2}, float one = {1.0}, float low = {-10000.0}> {
  e = Gather (table, ids)
  h = Reshape (e, apart)
  x = Transpose <perm = [0, 2, 1, 3]> (h)
  k = Concat <axis = 2> (past_k, x)
  v = Concat <axis = 2> (past_v, x)
  kt = Transpose <perm = [0, 1, 3, 2]> (k)
  s = MatMul (x, kt)
  real = Cast <to = 1> (mask)
  hidden = Sub (one, real)
  far = Mul (hidden, low)
  bias = Unsqueeze (far, ahead)
  m = Add (s, bias)
  p = Softmax <axis = -1> (m)
  y = MatMul (p, v)
}"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = onnx.parser.parse_model(_GRAPH)
    table = np.random.default_rng(0).standard_normal((11, 8)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    path = tmp_path_factory.mktemp("total") / "given.onnx"
    onnx.save(model, path)
    return path


def test_optimize_compares_all_its_cases(given: Path) -> None:
    artifact = deployml.optimize(given, output=given.with_name("made.onnx"), html=False)
    parity = artifact.report.parity
    assert parity is not None and parity.verdict == "pass"
    assert {c.verdict for c in parity.comparisons} == {"pass"} and "parity" not in artifact.report.not_run
    deployml.lock(artifact.path)
    found = deployml.check(artifact.path, against=given)
    assert (found.verdict, found.findings) == ("pass", ())
    assert deployml.validate(artifact.path, against=given).verdict == "pass"


def test_a_sweep_may_name_the_axis_that_follows_from_others(given: Path) -> None:
    swept = deployml.bench(given, seconds=0.2, sweep="P=7").latency
    assert swept is not None and [point.sizes for point in swept.sweep] == [{"P": 7}]
    assert deployml.bench(given, seconds=0.2, sweep="T=7").latency is not None


def test_a_reference_that_runs_nowhere_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "never.onnx"
    text = """<ir_version: 10, opset_import: ["" : 20]> g (float[B,L] x) => (float[2,97] y) <int64[2] to = {2, 97}> {
      y = Reshape (x, to)
    }"""
    onnx.save(onnx.parser.parse_model(text), path)
    made = deployml.optimize(path, output=tmp_path / "made.onnx", html=False)
    why = made.report.not_run["parity"]
    assert made.report.verdict == "inconclusive" and "\n" not in why
    assert "runs none of the 6 cases; at B=2 L=8" in why and "Reshape" in why and "onnxruntime_src" not in why
    assert why.endswith("deployml validate made.onnx --against never.onnx --data FOLDER")
