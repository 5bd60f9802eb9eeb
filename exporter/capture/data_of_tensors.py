"""``tensor.data`` while a model is traced: a way around autograd, which goes around the trace as well.

What comes out of it is a tensor that the trace does not know, and would keep as a constant. ``detach`` means the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch._subclasses.fake_tensor import FakeTensor

__all__ = ["data_is_detached"]

_DATA: Final[Any] = torch._C.TensorBase.data


def _data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if isinstance(tensor, FakeTensor) else _DATA.__get__(tensor)


@contextlib.contextmanager
def data_is_detached() -> Iterator[None]:
    """Let traced tensors answer ``.data`` with ``.detach()`` inside the block."""
    torch.Tensor.data = property(_data, _DATA.__set__)  # type: ignore[assignment]
    try:
        yield
    finally:
        del torch.Tensor.data
