"""``make demo``: a real sentence encoder with real sentences, from its package to a fused, proven ONNX file."""

from __future__ import annotations

from .run import Findings, main, run

__all__ = ["Findings", "main", "run"]
