"""How much memory a contender takes: it is loaded and run in a process of its own, which is then asked for its peak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from .isolate import run_isolated
from .memory import current_rss, peak_rss, reset_peak_rss
from .target import TargetName

__all__ = ["footprint", "grown", "in_a_process"]

_STEP = "the measurement of memory"
_SECONDS = 300.0


def footprint(
    path: Path, target: TargetName, libraries: Sequence[str], feeds: Mapping[str, np.ndarray], *, threads: int
) -> int | None:
    """Bytes by which a process grows at its peak to load a graph and run it twice; None where the system cannot tell.

    Weights and activations both count, the libraries that are loaded anyway do not.

    Raises:
        DeploymlError: if the graph does not load there, or the process dies or takes minutes.
    """
    return in_a_process(_graph, path, target, tuple(libraries), dict(feeds), threads)


def in_a_process(measure: Callable[..., int | None], *arguments: object) -> int | None:
    """What ``measure(*arguments)``, a function that calls :func:`grown`, says in a fresh process.

    Raises:
        DeploymlError: what it raises, or that the process died or took minutes.
    """
    return run_isolated(measure, *arguments, step=_STEP, timeout=_SECONDS)


def grown(make: Callable[[], Callable[[], object]]) -> int | None:
    """Bytes by which this process grows at its peak to make a contender and run it twice; None if unknown."""
    before = current_rss()
    reset_peak_rss()
    run = make()
    run()
    run()
    return None if before is None else max(0, peak_rss() - before)


def _graph(
    path: Path, target: TargetName, libraries: tuple[str, ...], feeds: dict[str, np.ndarray], threads: int
) -> int | None:
    from .session import open_session
    from .tensors import session_runner

    def make() -> Callable[[], object]:
        run = session_runner(open_session(path, target, libraries=libraries, threads=threads))
        return lambda: run(feeds)

    return grown(make)
