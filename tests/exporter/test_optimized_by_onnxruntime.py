"""Graphs that onnxruntime's own optimizer has written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import deployml
from deployml import custom_ops

_GRAPH = """<ir_version: 10, opset_import: ["" : 17]>
g (float[B,S,12] x, float[B,1,1,S] bias) => (float[B,S,12] y)
<int64[4] apart = {0, 0, 2, 6}, int64[3] joined = {0, 0, 12}, float root = {2.5}> {
  a = MatMul (x, w)
  h = Reshape (a, apart)
  q = Transpose <perm = [0, 2, 1, 3]> (h)
  kt = Transpose <perm = [0, 2, 3, 1]> (h)
  s = MatMul (q, kt)
  d = Div (s, root)
  m = Add (d, bias)
  p = Softmax <axis = -1> (m)
  o = MatMul (p, q)
  t = Transpose <perm = [0, 2, 1, 3]> (o)
  y = Reshape (t, joined)
}"""


def _session(path: Path, level: onnxruntime.GraphOptimizationLevel, write: Path | None = None):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    if write is not None:
        options.optimized_model_filepath = str(write)
    custom_ops.register(options)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    source, path = folder / "source.onnx", folder / "optimized.onnx"
    model = onnx.parser.parse_model(_GRAPH)
    weight = np.random.default_rng(0).standard_normal((12, 12)).astype(np.float32) * 0.5
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, source)
    _session(source, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, path)
    return path


def test_a_score_product_fused_with_its_scale_is_recognised(optimized: Path, tmp_path: Path) -> None:
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    assert "FusedMatMul" in kinds
    artifact = deployml.optimize(optimized, output=tmp_path / "m.onnx", validate=False, html=False, cpu_isa="avx2")
    (site,) = artifact.report.sites
    assert (site.status, site.detail) == ("fused", None)
    plain = _session(optimized, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    fused = _session(artifact.path, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL)
    for batch, length in ((1, 1), (3, 7)):
        x = np.random.default_rng(length).standard_normal((batch, length, 12)).astype(np.float32)
        bias = np.where(np.arange(length) < max(length - 2, 1), 0, -10000).astype(np.float32)
        feed = {"x": x, "bias": np.broadcast_to(bias, (batch, 1, 1, length)).copy()}
        np.testing.assert_allclose(fused.run(None, feed)[0], plain.run(None, feed)[0], rtol=0, atol=1e-5)
