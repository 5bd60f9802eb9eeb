"""Pieces of messages: errors in one line, text of a file made harmless, the command to type."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ["brief", "export_command", "printable"]


def export_command(path: Path) -> str:
    """Return ``deployml export FILE`` as a shell takes it."""
    return f"deployml export {shlex.quote(path.name)}"


def brief(error: BaseException, *, limit: int = 400) -> str:
    """Say in one line what went wrong and, for an error in a user's file, at which line."""
    text = printable(" ".join(str(error).split()), limit=limit) or "no message"
    line = ""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is not None:
        line = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {text}{line}"


def printable(text: object, *, limit: int = 200) -> str:
    """Show text that came out of a file: no control characters reach the terminal, and no novel."""
    shown = str(text)[: limit + 1]
    if not shown.isprintable():
        shown = shown.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= limit else shown[:limit] + " ..."
