"""Small ONNX models, written as text, for the runtime's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser


@pytest.fixture
def relu_model() -> bytes:
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[b,4] x) => (float[b,4] y) { t = Relu(x) y = Neg(t) }'
    return parser.parse_model(text).SerializeToString()


@pytest.fixture
def linear_model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a model with its weights in NAME.data beside it and returns its path."""

    def write(name: str = "linear.onnx") -> Path:
        text = '<ir_version: 10, opset_import: ["": 20]> g (float[b,64] x) => (float[b,64] y) { y = MatMul(x, w) }'
        model = parser.parse_model(text)
        weights = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = f"{path.name}.data"
        onnx.save(model, str(path), save_as_external_data=True, location=data, size_threshold=0)
        return path

    return write
