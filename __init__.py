"""deployml: PyTorch transformers to ONNX, with every attention fused, proven and explained."""

from __future__ import annotations

__version__ = "0.1.0"
