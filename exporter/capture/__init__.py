"""Tracing a loaded model into a ``torch.export`` program that keeps every attention call whole.

Importing this package imports torch.
"""

from __future__ import annotations

from .captured import Captured
from .check import check_dynamic
from .program import capture
from .trace import slow_paths

__all__ = ["Captured", "capture", "check_dynamic", "slow_paths"]
