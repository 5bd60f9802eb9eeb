"""Turning a captured program into an ONNX graph with its attention sites known.

Importing this package imports torch.
"""

from __future__ import annotations

from .model import Translated, translate

__all__ = ["Translated", "translate"]
