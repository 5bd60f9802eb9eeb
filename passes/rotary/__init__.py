"""Rotary position embedding rules."""

from __future__ import annotations

from typing import Final

from ..rule import Rule

__all__ = ["RULES"]

#: In the order to run.
RULES: Final[tuple[Rule, ...]] = ()
