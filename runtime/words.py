"""English for numbers of things."""

from __future__ import annotations

__all__ = ["counted"]


def counted(number: int, word: str) -> str:
    """A number with its word: "1 node", "3 nodes"."""
    return f"{number} {word}{'' if number == 1 else 's'}"
