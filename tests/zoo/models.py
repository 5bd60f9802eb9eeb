"""All models of the zoo, by name."""

from __future__ import annotations

from typing import Final

from . import decoders, encoders, hand_written, seq2seq, speech, torch_modules, vision
from .entry import Entry

__all__ = ["ZOO", "pairs"]

_FAMILIES = (encoders, decoders, seq2seq, vision, speech, torch_modules, hand_written)

#: Name to entry, in the order of the table.
ZOO: Final[dict[str, Entry]] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}


def pairs(*, everyday: bool = False) -> list[tuple[str, str]]:
    """(model, implementation) of every run, or of the everyday ones alone."""
    chosen = [entry for entry in ZOO.values() if entry.everyday or not everyday]
    return [(entry.name, impl) for entry in chosen for impl in entry.impls]
