"""Rotary position embedding rules: the written-out form becomes one operator, then moves before the head split."""

from __future__ import annotations

from typing import Final

from ..rule import Rule
from .merged_heads import RotaryMergedHeads
from .rotary_embedding import RotaryEmbedding

__all__ = ["RULES", "RotaryEmbedding", "RotaryMergedHeads"]

#: In the order to run.
RULES: Final[tuple[Rule, ...]] = (RotaryEmbedding(), RotaryMergedHeads())
