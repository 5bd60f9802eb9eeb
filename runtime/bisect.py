"""Finding the first bad state of a run that can be repeated, holding few states at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final, TypeVar

__all__ = ["first_bad"]

S = TypeVar("S")

#: States kept of one repetition; a run of this number squared takes two.
_KEPT: Final = 24


def first_bad(count: int, replay: Callable[[Collection[int]], Mapping[int, S]], is_bad: Callable[[S], bool]) -> int:
    """The number of the first bad state.

    Args:
        count: Number of the last state, which is bad. State 0, the beginning, is good.
        replay: Repeats the run and gives the states with these numbers.
        is_bad: Judges a state. Once bad, all later states count as bad.
    """
    good, bad = 0, count
    while bad - good > 1:
        wanted = _spread(good, bad)
        states = replay(wanted)
        while wanted:
            middle = wanted[len(wanted) // 2]
            if is_bad(states[middle]):
                bad, wanted = middle, [n for n in wanted if n < middle]
            else:
                good, wanted = middle, [n for n in wanted if n > middle]
    return bad


def _spread(good: int, bad: int) -> list[int]:
    """Numbers strictly between, evenly spread, at most as many as may be kept."""
    inside = bad - good - 1
    kept = min(inside, _KEPT)
    return sorted({good + 1 + (inside - 1) * i // max(kept - 1, 1) for i in range(kept)})
