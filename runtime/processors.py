"""The processors that this process has for itself."""

from __future__ import annotations

import os

__all__ = ["usable_threads"]


def usable_threads() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
