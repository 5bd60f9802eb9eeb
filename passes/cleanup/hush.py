"""Keeping passes of others quiet where they warn of what is as it must be."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["hushed"]


@contextmanager
def hushed(module: str) -> Iterator[None]:
    """Hold back the warnings that a module logs, for as long as the block runs."""
    logger = logging.getLogger(module)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
