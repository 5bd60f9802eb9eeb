"""All models of the zoo, by name."""

from __future__ import annotations

import os
from typing import Final

from . import decoders, encoders, hand_unusual, hand_written, seq2seq, speech, torch_modules, vision
from .entry import Entry

__all__ = ["ZOO", "pairs", "selected"]

_FAMILIES = (encoders, decoders, seq2seq, vision, speech, torch_modules, hand_written, hand_unusual)

#: Name to entry, in the order of the table.
ZOO: Final[dict[str, Entry]] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}


def pairs() -> list[tuple[str, str]]:
    """(model, implementation) of every run."""
    return [(entry.name, impl) for entry in ZOO.values() for impl in entry.impls]


def selected() -> frozenset[tuple[str, str]]:
    """The runs of every day: a fixed core, and the share that ZOO_SHARE="3/20" names (the third of twenty)."""
    core = {(entry.name, entry.impls[-1]) for entry in ZOO.values() if entry.everyday}
    wanted = os.environ.get("ZOO_SHARE", "")
    if not wanted:
        return frozenset(core)
    which, _, of = wanted.partition("/")
    return frozenset(core | set(pairs()[int(which) % int(of) :: int(of)]))
