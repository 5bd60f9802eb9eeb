"""What a supervised command says of itself while it runs, so that whoever watches it can tell how far it came.

A line is written to a pipe when a stage or a set of files begins and when it ends. Outside of a supervised command
(:mod:`.supervise`) nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

__all__ = ["SCRATCH", "drop", "last", "leave", "send_to"]

#: How the name of a folder begins that may be taken away when whoever made it died.
SCRATCH: Final = ".deployml-"
_MARK: Final = "@deployml "
_places: list[int] = []


def send_to(descriptor: int | None) -> None:
    """Write crumbs to this file descriptor from now on; None: nowhere."""
    _places[:] = [] if descriptor is None else [descriptor]


def drop(kind: str, text: str) -> None:
    """Write one line. A watcher that is gone, or does not read, is no reason to stop."""
    for descriptor in _places:
        with suppress(OSError):
            os.write(descriptor, f"{_MARK}{kind} {text}\n".encode("utf-8", "surrogateescape"))


@contextmanager
def leave(kind: str, text: str) -> Iterator[None]:
    """Say that something goes on for as long as the block runs."""
    drop(kind, text)
    try:
        yield
    finally:
        drop(kind, "")


def last(said: bytes, kind: str) -> str | None:
    """The newest text of a kind in what was written; None where there is none, or where it had ended."""
    lines = said.decode("utf-8", "surrogateescape").splitlines()
    start = f"{_MARK}{kind} "
    texts = [line.removeprefix(start) for line in lines if line.startswith(start)]
    return (texts[-1] or None) if texts else None
