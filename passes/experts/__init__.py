"""Mixtures of experts: grouped products kept whole at capture, and what becomes of them."""

from __future__ import annotations

from .lower import lower_experts

__all__ = ["lower_experts"]
