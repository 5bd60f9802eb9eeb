"""Mixtures of experts: grouped products kept whole at capture, lowered to the project's own operator."""

from __future__ import annotations

from .gathered import GatheredExperts
from .grouped import SortedExperts
from .looped import LoopedExperts
from .lower import RULES, join_experts, lower_experts

__all__ = ["RULES", "GatheredExperts", "LoopedExperts", "SortedExperts", "join_experts", "lower_experts"]
