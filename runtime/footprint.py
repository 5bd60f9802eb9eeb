"""How much memory a graph takes: it is loaded and run in a process of its own, which is then asked for its peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .errors import DeploymlError
from .isolate import run_isolated
from .memory import current_rss, peak_rss
from .target import TargetName

__all__ = ["footprint"]


def footprint(
    path: Path, target: TargetName, libraries: Sequence[str], feeds: Mapping[str, np.ndarray], *, threads: int
) -> int | None:
    """Bytes by which a process grows at its peak to load a graph and run it twice; None where that cannot be measured.

    Weights and activations both count, the libraries that are loaded anyway do not.
    """
    step = "the measurement of memory"
    try:
        return run_isolated(_grown, path, target, tuple(libraries), dict(feeds), threads, step=step, timeout=300)
    except DeploymlError:
        return None


def _grown(
    path: Path, target: TargetName, libraries: tuple[str, ...], feeds: dict[str, np.ndarray], threads: int
) -> int | None:
    from .session import open_session
    from .tensors import session_runner

    before = current_rss()
    run = session_runner(open_session(path, target, libraries=libraries, threads=threads))
    run(feeds)
    run(feeds)
    return None if before is None else max(0, peak_rss() - before)
