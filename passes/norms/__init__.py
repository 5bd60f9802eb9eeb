"""Normalisation rules: written-out norms become one operator, then take in the residual sum before them."""

from __future__ import annotations

from typing import Final

from ..rule import Rule
from .layer_norm import LayerNorm
from .norm_of_transpose import NormOfTranspose
from .own_skip_norm import OwnSkipNorm
from .rms_norm import RmsNorm
from .skip_layer_norm import SkipLayerNorm
from .skip_rms_norm import SkipRmsNorm
from .sum_before_norm import SumBeforeNorm

__all__ = [
    "RULES",
    "LayerNorm",
    "NormOfTranspose",
    "OwnSkipNorm",
    "RmsNorm",
    "SkipLayerNorm",
    "SkipRmsNorm",
    "SumBeforeNorm",
]

#: In the order to run.
RULES: Final[tuple[Rule, ...]] = (
    RmsNorm(),
    LayerNorm(),
    OwnSkipNorm(),
    SkipLayerNorm(),
    SkipRmsNorm(),
    SumBeforeNorm(),
    NormOfTranspose(),
)
