"""Python's garbage collector, kept out of the way of work that builds large graphs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["few_collections"]

#: Thresholds of the three generations (gc.set_threshold). A trace keeps most of what it makes: with Python's own
#: thresholds the collector looks at the same millions of living objects again and again, a fifth of an export's time.
_RARE: Final = (50_000, 10, 10)

_lock = threading.Lock()
_users = 0
_before: tuple[int, int, int] = (0, 0, 0)


@contextmanager
def few_collections() -> Iterator[None]:
    """Collect rarely for as long as the block runs, in the whole process; a collector that is off stays off.

    Blocks may be nested and overlap in several threads: the last one to end puts the thresholds back, unless somebody
    else has set them meanwhile.
    """
    global _users, _before
    with _lock:
        if not _users:
            _before = gc.get_threshold()
            gc.set_threshold(*_rarer(_before))
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users and gc.get_threshold() == _rarer(_before):
                gc.set_threshold(*_before)


def _rarer(thresholds: tuple[int, int, int]) -> tuple[int, int, int]:
    """Never more often than the process asked for; a first threshold of 0 means never."""
    young, middle, old = (max(now, rare) for now, rare in zip(thresholds, _RARE, strict=True))
    return (young if thresholds[0] else 0, middle, old)
