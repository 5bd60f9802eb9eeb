"""Rotary position embedding rules: the written-out form becomes one operator, then moves before the head split."""

from __future__ import annotations

from typing import Final

from ..rule import Rule
from .merged_heads import RotaryMergedHeads
from .pairs import RotaryPairs
from .rotary_embedding import RotaryEmbedding

__all__ = ["RULES", "RotaryEmbedding", "RotaryMergedHeads", "RotaryPairs"]

#: In the order to run.
RULES: Final[tuple[Rule, ...]] = (RotaryPairs(), RotaryEmbedding(), RotaryMergedHeads())
