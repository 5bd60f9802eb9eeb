"""Activation rules: written-out activations become one operator, then take in the bias before them."""

from __future__ import annotations

from typing import Final

from ..rule import Rule
from .bias_fast_gelu import BiasFastGelu
from .bias_gelu import BiasGelu
from .gelu_erf import GeluErf
from .gelu_tanh import GeluTanh
from .quick_gelu import QuickGelu

__all__ = ["RULES", "BiasFastGelu", "BiasGelu", "GeluErf", "GeluTanh", "QuickGelu"]

#: In the order to run.
RULES: Final[tuple[Rule, ...]] = (GeluErf(), GeluTanh(), BiasGelu(), BiasFastGelu(), QuickGelu())
