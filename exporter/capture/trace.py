"""Tracing a loaded model into a program with ``torch.export``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from .inputs import Examples

__all__ = ["slow_paths", "trace"]


@contextlib.contextmanager
def slow_paths() -> Iterator[None]:
    """Keep modules on the path that calls scaled-dot-product attention, for tracing and for reference runs.

    ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` otherwise take one opaque kernel in inference, and
    with a padding mask nested tensors, which also set padded rows to zero and cut the sequence.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace(module: torch.nn.Module, examples: Examples, *, strict: bool = False) -> ExportedProgram:
    """Trace a module with the declared axes dynamic. Raises whatever torch raises."""
    args, kwargs = examples.call()
    # Sizes 0 and 1 are then no reason to make an axis static: a batch of one stays a batch.
    oblivious: Any = torch.fx.experimental._config.patch(backed_size_oblivious=True)
    with slow_paths(), oblivious, torch.no_grad():
        return torch.export.export(
            module,
            args,
            kwargs,
            dynamic_shapes=examples.shapes() if any(True for _ in examples.dynamic()) else None,
            strict=strict,
        )
