"""Mixtures of experts: grouped products kept whole at capture, lowered to the project's own operator."""

from __future__ import annotations

from .gathered import GatheredExperts
from .grouped import SortedExperts
from .lower import RULES, lower_experts

__all__ = ["RULES", "GatheredExperts", "SortedExperts", "lower_experts"]
