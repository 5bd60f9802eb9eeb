"""``deployml::attention``: a torch op that stands for one scaled-dot-product attention until translation.

torch decomposes ``scaled_dot_product_attention`` into something whose strides differ from those it had when
the model was traced, and a later ``.view`` then fails (T5, BEiT, Swin). This op says the same thing, is opaque
to every decomposition, and reports the strides of the traced result, whose order it carries as an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

__all__ = ["ATTENTION", "size_hint", "stride_order"]

_LIBRARY: Final = torch.library.Library("deployml", "FRAGMENT")
_LIBRARY.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask, float dropout_p, bool is_causal, "
    "float? scale, bool enable_gqa, int[] stride_order) -> Tensor"
)


def stride_order(value: torch.Tensor) -> list[int]:
    """The axes of a tensor from the outermost in memory to the innermost, by its (maybe symbolic) strides.

    Axes of equal stride (size 1) keep their order, so a contiguous tensor gives 0, 1, 2, ...
    """
    hints = [size_hint(stride) for stride in value.stride()]
    return sorted(range(value.dim()), key=lambda axis: (-hints[axis], axis))


def size_hint(size: Any) -> int:
    """The number a (maybe symbolic) size had when it was traced; 1 where it depends on tensor values."""
    node = getattr(size, "node", None)
    if node is None:
        return int(size)
    return int(node.hint) if node.has_hint() else 1


def _dense_like(shape: Sequence[Any], order: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    buffer = like.new_empty([shape[axis] for axis in order])
    inverse = sorted(range(len(order)), key=lambda position: order[position])
    return buffer.permute(inverse)


def _shape(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> list[Any]:
    leading = torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3])
    heads = query.shape[-3:-2]
    if not heads or key.shape[-3] == query.shape[-3] or query.shape[-3] != 1:
        return [*leading, *heads, query.shape[-2], value.shape[-1]]
    return [*leading, key.shape[-3], query.shape[-2], value.shape[-1]]


def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    stride_order: Sequence[int],
) -> torch.Tensor:
    return _dense_like(_shape(query, key, value), stride_order, query)


def _run(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    stride_order: Sequence[int],
) -> torch.Tensor:
    result = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return _dense_like(result.shape, stride_order, result).copy_(result)


_LIBRARY.impl("attention", _run, "CompositeExplicitAutograd")
torch.library.register_fake("deployml::attention", _fake, lib=_LIBRARY)

#: The overload that stands in a captured program.
ATTENTION: Final = torch.ops.deployml.attention.default
