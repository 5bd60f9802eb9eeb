"""The memory of eager torch and of ``torch.compile``: the source is loaded once more, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import InputError
from ..runtime.footprint import grown, in_a_process
from .options import SourceOptions

__all__ = ["eager_footprint"]


def eager_footprint(
    source: Any, options: SourceOptions, feeds: Mapping[str, np.ndarray], *, threads: int, compiled: bool = False
) -> int | None:
    """Bytes by which a process grows at its peak to load a torch source and run it twice; None if unknown.

    What compiling takes counts, torch and its compiler themselves do not.

    Args:
        source: A file or folder, as for :func:`deployml.exporter.load.load`.
        options: How it is opened.
        feeds: Its inputs by name.
        threads: Threads of torch.
        compiled: Run it under ``torch.compile``.

    Raises:
        InputError: if another process cannot load it: a live module, or a factory that is no name.
        DeploymlError: if it does not load there, or the process dies or takes minutes.
    """
    if not isinstance(source, str | Path) or callable(options.factory):
        raise InputError("the source is an object of this process", hint="give a file, and --factory by its name")
    return in_a_process(_torch, str(source), options.keywords(), dict(feeds), threads, compiled)


def _torch(
    source: str, keywords: dict[str, Any], feeds: dict[str, np.ndarray], threads: int, compiled: bool
) -> int | None:
    import torch

    from .eager import Eager
    from .load import load

    if compiled:  # the compiler's own modules are loaded by a function of no weight
        torch.compile(lambda x: x + 1)(torch.ones(2))
    with ExitStack() as stack:

        def make() -> Callable[[], object]:
            loaded = stack.enter_context(load(source, **keywords))
            return Eager(loaded).bound(feeds, stack, threads=threads, compiled=compiled)

        return grown(make)
