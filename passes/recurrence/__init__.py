"""Linear attention: kept whole at capture, lowered to onnxruntime's recurrence."""

from __future__ import annotations

from ..rule import Rule
from .linear_attention import LinearAttention
from .lower import lower_recurrences

__all__ = ["RULES", "lower_recurrences"]

#: Rules that lower the canonical linear attention.
RULES: tuple[Rule, ...] = (LinearAttention(),)
