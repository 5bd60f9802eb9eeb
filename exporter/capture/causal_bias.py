"""``torch.nn.attention.bias.CausalBias``: a mask that is a tensor of its own class, while torch traces."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import bias

__all__ = ["causal_bias_as_mask"]


@contextlib.contextmanager
def causal_bias_as_mask() -> Iterator[None]:
    """Let ``causal_upper_left`` and ``causal_lower_right`` give boolean masks (S, T), inside the block.

    torch cannot trace the making of their class, whose only use is to be an attention's mask. What was made before,
    and is an attribute of the model, stays what it is.
    """
    before = bias.CausalBias

    def mask(variant: bias.CausalVariant, queries: Any, keys: Any) -> torch.Tensor:
        corner = keys - queries if variant == bias.CausalVariant.LOWER_RIGHT else 0
        at = torch.arange(queries)[:, None]
        return torch.arange(keys)[None] <= at + corner

    bias.CausalBias = mask  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        bias.CausalBias = before  # type: ignore[misc]
