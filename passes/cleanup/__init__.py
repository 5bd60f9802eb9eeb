"""Whole-model clean-up: functions over a model that keep its inputs, outputs and their names."""

from __future__ import annotations

from .dedupe import deduplicate
from .fold import fold, fold_weight_transposes
from .infer import infer_shapes
from .pack import pack_weights
from .simplify import simplify

__all__ = ["deduplicate", "fold", "fold_weight_transposes", "infer_shapes", "pack_weights", "simplify"]
