"""All models of the zoo, by name."""

from __future__ import annotations

import os
from typing import Final

from . import decoders, encoders, hand_unusual, hand_written, seq2seq, speech, torch_modules, vision
from .entry import Entry

__all__ = ["ZOO", "core", "pairs", "selected", "shared"]

_FAMILIES = (encoders, decoders, seq2seq, vision, speech, torch_modules, hand_written, hand_unusual)

#: Name to entry, in the order of the table.
ZOO: Final[dict[str, Entry]] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}


def pairs() -> list[tuple[str, str]]:
    """(model, implementation) of every run."""
    return [(entry.name, impl) for entry in ZOO.values() for impl in entry.impls]


def core() -> frozenset[tuple[str, str]]:
    """The runs of every day, each in its last implementation."""
    return frozenset((entry.name, entry.impls[-1]) for entry in ZOO.values() if entry.everyday)


def shared() -> frozenset[tuple[str, str]]:
    """The other runs of today: the share that ZOO_SHARE="3/20" names (the third of twenty)."""
    wanted = os.environ.get("ZOO_SHARE", "")
    if not wanted:
        return frozenset()
    which, _, of = wanted.partition("/")
    return frozenset(pairs()[int(which) % int(of) :: int(of)]) - core()


def selected() -> frozenset[tuple[str, str]]:
    """The runs of today."""
    return core() | shared()
