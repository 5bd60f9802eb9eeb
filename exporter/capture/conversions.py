"""Conversions of modules in the middle of ``forward``: ``self.layer.to(x.device)``, which convert nothing.

``nn.Module.to`` swaps its parameters, which torch forbids while it traces. Where every tensor already has the type
and the device that it is asked for, there is nothing to swap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch

__all__ = ["idle_conversions"]


@contextlib.contextmanager
def idle_conversions() -> Iterator[None]:
    """Let ``to``, ``float``, ``cpu`` and the like return modules that they would not change, inside the block."""
    before = torch.nn.Module._apply

    def applied(self: torch.nn.Module, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        tensors = chain(self.parameters(recurse), self.buffers(recurse))
        return self if all(_same(tensor, fn(tensor)) for tensor in tensors) else before(self, fn, recurse)

    torch.nn.Module._apply = applied
    try:
        yield
    finally:
        torch.nn.Module._apply = before


def _same(one: torch.Tensor, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and (one.dtype, one.device) == (other.dtype, other.device)
