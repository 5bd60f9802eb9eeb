"""The memory a module of :mod:`nodes` takes in eager torch or compiled, for a process that does nothing else."""

from __future__ import annotations

from collections.abc import Callable

import nodes
import torch
from torch import nn

from deployml.runtime.footprint import grown

__all__ = ["torch_memory"]


def torch_memory(name: str, batch: int, length: int, compiled: bool) -> int | None:
    """Bytes by which the process grows at its peak to build a module and run it twice; compiling counts."""
    torch.set_num_threads(1)
    feed = nodes.MODELS[name].feed(batch, length)
    if compiled:  # the compiler's own modules are loaded by a function of no weight
        torch.compile(lambda x: x + 1)(torch.ones(2))

    def make() -> Callable[[], object]:
        module = nodes.MODELS[name].build().eval()
        called = torch.compile(module) if compiled else module

        def run() -> object:
            with torch.inference_mode():
                return called(*feed.values()) if isinstance(module, nn.Sequential) else called(**feed)

        return run

    return grown(make)
