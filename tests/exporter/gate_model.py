"""A small model of plain operators, two layers of attention with padding mask, for tests of the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx import numpy_helper, parser

__all__ = ["plain_model", "save"]

_HEAD = """<ir_version: 10, opset_import: ["" : 20]>
encoder (float[batch,sequence,32] x, bool[batch,sequence] mask) => (float[batch,sequence,32] y) {
  axes = Constant <value_ints = [1, 2]> ()
  keys = Unsqueeze (mask, axes)
  low = Constant <value_float = -inf> ()
  zero = Constant <value_float = 0.0> ()
  bias = Where (keys, zero, low)
"""
_LAYER = """
  q{n} = MatMul ({x}, wq{n})
  k{n} = MatMul ({x}, wk{n})
  v{n} = MatMul ({x}, wv{n})
  shape{n} = Constant <value_ints = [0, 0, 4, 8]> ()
  q4{n} = Reshape (q{n}, shape{n})
  k4{n} = Reshape (k{n}, shape{n})
  v4{n} = Reshape (v{n}, shape{n})
  qt{n} = Transpose <perm = [0, 2, 1, 3]> (q4{n})
  kt{n} = Transpose <perm = [0, 2, 3, 1]> (k4{n})
  vt{n} = Transpose <perm = [0, 2, 1, 3]> (v4{n})
  product{n} = MatMul (qt{n}, kt{n})
  scale{n} = Constant <value_float = 0.35355338> ()
  scaled{n} = Mul (product{n}, scale{n})
  scores{n} = Add (scaled{n}, bias)
  weights{n} = Softmax <axis = -1> (scores{n})
  context{n} = MatMul (weights{n}, vt{n})
  back{n} = Transpose <perm = [0, 2, 1, 3]> (context{n})
  flat{n} = Constant <value_ints = [0, 0, 32]> ()
  merged{n} = Reshape (back{n}, flat{n})
  out{n} = MatMul (merged{n}, wo{n})
  {y} = Add (out{n}, {x})
"""


def plain_model(*, layers: int = 2, seed: int = 0) -> ir.Model:
    """The model, with module paths as an exporter would leave them and weights under their modules' names."""
    names = ["x", *(f"h{n}" for n in range(1, layers)), "y"]
    body = "".join(_LAYER.format(n=n, x=names[n], y=names[n + 1]) for n in range(layers))
    proto = parser.parse_model(_HEAD + body + "}")
    draw = np.random.default_rng(seed)
    for role, n in [(role, n) for n in range(layers) for role in "qkvo"]:
        array = (draw.standard_normal((32, 32)) * 0.3).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(array, f"w{role}{n}"))
    model = ir.serde.deserialize_model(proto)
    for name, value in list(model.graph.initializers.items()):
        value.name = f"encoder.layer.{name[2]}.attention.{name[1]}.weight"
    for node in model.graph:
        digits = "".join(c for c in node.outputs[0].name or "" if c.isdigit())
        if digits and node.op_type != "Constant":
            node.metadata_props["deployml.module"] = f"encoder.layer.{digits[-1]}.attention"
            node.metadata_props["deployml.source"] = "shop/model.py:41"
    return model


def save(model: ir.Model, path: Path) -> Path:
    """Write a model and return its path."""
    ir.save(model, path)
    return path
