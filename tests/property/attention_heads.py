"""The same attention with its heads in another order: everything that belongs to a head moves with it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch

from .attention_spec import AttentionSpec

__all__ = ["in_given_order", "with_heads_moved"]


def _orders(spec: AttentionSpec) -> tuple[list[int], list[int]]:
    """(query heads, key/value heads): groups moved on by one, the heads of each turned round."""
    group = spec.heads // spec.kv_heads
    shared = [*range(1, spec.kv_heads), 0]
    return [k * group + n for k in shared for n in reversed(range(group))], shared


def with_heads_moved(module: torch.nn.Module, specs: Sequence[AttentionSpec]) -> torch.nn.Module:
    """A copy of what ``build`` made, every head of every attention in another place."""
    moved = copy.deepcopy(module)
    for site, spec in zip(moved.sites, specs, strict=True):  # type: ignore[arg-type,call-overload]
        for name, tensor in (*site.named_parameters(), *site.named_buffers()):
            tensor.data = _moved(name, tensor.data, spec).contiguous()
    return moved


def _moved(name: str, tensor: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    order, shared = _orders(spec)
    base, _, kind = name.partition(".")
    if base == "qkv":
        return _packed(tensor, spec)
    if base in ("q", "k", "v", "rq", "rk", "up"):
        return _rows(tensor, shared if base in ("k", "v") else order)
    if base in ("mk", "mv"):
        return tensor[:, :, shared]
    if base in ("talk", "talk_in"):
        return tensor[order][:, order]
    if base == "o" and kind == "weight":
        return _rows(tensor.transpose(0, 1), order).transpose(0, 1)
    if base == "table" and kind == "weight":  # an embedding: (buckets, heads)
        return tensor[:, order]
    return tensor[order] if base in ("table", "slopes", "heat", "sink", "bu", "bv") else tensor


def _rows(tensor: torch.Tensor, order: Sequence[int]) -> torch.Tensor:
    """The first axis taken apart by head, and put together in an order."""
    return tensor.unflatten(0, (len(order), -1))[list(order)].flatten(0, 1)


def _packed(tensor: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    order, shared = _orders(spec)
    if spec.packing == "split":
        sizes = [spec.heads * spec.size, spec.kv_heads * spec.size, spec.kv_heads * spec.value_size]
        parts = tensor.split(sizes)
        return torch.cat([_rows(p, o) for p, o in zip(parts, (order, shared, shared), strict=True)])
    if spec.packing == "unbind":
        return torch.cat([_rows(part, order) for part in tensor.chunk(3)])
    return _rows(tensor, order)  # (heads, 3, size) and (heads, size, 3)


def in_given_order(output: np.ndarray, spec: AttentionSpec) -> np.ndarray:
    """The result of moved heads as the module gives it: without a projection, heads stand side by side in it."""
    if spec.project:
        return output
    back = np.argsort(_orders(spec)[0])
    heads = output.reshape(*output.shape[:-1], spec.heads, -1)
    return heads[..., back, :].reshape(output.shape)
