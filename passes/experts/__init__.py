"""Mixtures of experts: grouped products kept whole at capture, lowered to the project's own operator."""

from __future__ import annotations

from .lower import RULES, lower_experts
from .mixture import MixtureOfExperts

__all__ = ["RULES", "MixtureOfExperts", "lower_experts"]
