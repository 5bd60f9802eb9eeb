"""The sizes of a sweep: what the user wrote, and inputs that have them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..runtime.errors import InputError
from ..runtime.feeds import Case, InputSpec, draw
from ..runtime.shapes import symbols_of

__all__ = ["check_axes", "parse_sweep", "sweep_cases"]

_AXIS: Final = re.compile(r"([A-Za-z_]\w*)=(\d+(?:,\d+)*)")
#: More combinations than this are a mistake, or a night.
_MOST: Final = 64


def parse_sweep(text: str | None) -> dict[str, tuple[int, ...]]:
    """Axes and their sizes out of "batch=1,4 sequence=32,128".

    Raises:
        InputError: if it is written otherwise, or makes too many combinations.
    """
    if text is None:
        return {}
    found: dict[str, tuple[int, ...]] = {}
    for word in text.split():
        matched = _AXIS.fullmatch(word)
        sizes = tuple(int(n) for n in matched[2].split(",")) if matched else ()
        if matched is None or 0 in sizes:
            raise InputError(f"'{word}' is no axis with sizes", hint='write --sweep "batch=1,4 sequence=32,128"')
        found[matched[1]] = tuple(dict.fromkeys(sizes))
    count = len(list(itertools.product(*found.values())))
    if not found or count > _MOST:
        raise InputError(f"--sweep makes {count if found else 0} combinations", hint=f"give 1 to {_MOST}")
    return found


def sweep_cases(
    specs: Sequence[InputSpec], wanted: Mapping[str, Sequence[int]], *, usual: Mapping[str, int]
) -> dict[tuple[tuple[str, int], ...], Case]:
    """Inputs of every combination; axes that are not named keep their ``usual`` size."""
    combinations = (tuple(zip(wanted, sizes, strict=True)) for sizes in itertools.product(*wanted.values()))
    return {chosen: draw(specs, {**usual, **dict(chosen)}) for chosen in combinations}


def check_axes(specs: Sequence[InputSpec], wanted: Iterable[str]) -> None:
    """Hold the axes of a sweep against the model.

    Raises:
        InputError: if an axis is none of the model's.
    """
    symbols = dict.fromkeys(s for spec in specs for dim in spec.shape for s in symbols_of(dim))
    unknown = [name for name in wanted if name not in symbols]
    if unknown:
        raise InputError(
            f"the model has no dynamic axis {', '.join(unknown)}", hint=f"its axes: {', '.join(symbols) or 'none'}"
        )
