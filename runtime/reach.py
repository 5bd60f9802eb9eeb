"""The least sizes that a model takes, found by running it: 100 samples of speech make no frame.

A graph does not say at which length its convolutions leave something to attend to, and torch's bound on a traced axis
may lie below it. Comparing at sizes that the model refuses compares nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .attempt import Runner, attempt
from .errors import DeploymlError
from .feeds import InputSpec, draw, elements, grid_sizes, root_symbols, signals
from .ties import ties

__all__ = ["Limits", "least_sizes", "reachable"]

#: Symbol to its smallest and largest size (None: no limit).
Limits = Mapping[str, tuple[int, int | None]]

#: Sizes to find one at which a model runs, where no example shows one; the larger ones for signals alone.
_GUESSES: Final = tuple(2**power for power in range(5, 15))
_TOKENS: Final = 1024
#: No input of more elements is tried.
_MOST_ELEMENTS: Final = 1 << 21


def reachable(
    specs: Sequence[InputSpec], run: Runner, *, shown: Mapping[str, int] | None = None, limits: Limits | None = None
) -> tuple[tuple[InputSpec, ...], dict[str, tuple[int, int | None]]]:
    """The inputs and the sizes of their axes at which the model runs; the arguments are those of :func:`least_sizes`.

    Returns:
        The inputs, a mask's axis tied to others where the model runs so (see :mod:`deployml.runtime.ties`), and
        the limits of :func:`least_sizes`.
    """

    def fits(way: Sequence[InputSpec]) -> bool:
        # Not at the smallest sizes: a mask of one position fits any. The third have one row: GroupQueryAttention with a
        # cache takes several new positions of no more rows than that.
        sizes = grid_sizes(way, traced=shown, limits=limits)
        return any(map(_trial(way, run), (*sizes[:1], *sizes[2:3])))

    meant = next(filter(fits, ties(specs)), tuple(specs))
    return meant, least_sizes(meant, run, shown=shown, limits=limits)


def least_sizes(
    specs: Sequence[InputSpec], run: Runner, *, shown: Mapping[str, int] | None = None, limits: Limits | None = None
) -> dict[str, tuple[int, int | None]]:
    """Raise the smallest size of each axis but the batch to one at which the model runs.

    A model that runs at the first sizes of the parity grid, and at smallest sizes that are known, keeps its limits; so
    does one that runs nowhere, or not at the sizes of the grid that would follow.

    Args:
        specs: The model's inputs.
        run: The model.
        shown: Symbol to its size in an example.
        limits: What is known before.

    Returns:
        The limits, with those lower ends raised below which the model refuses its inputs.
    """
    known, roots = dict(limits or {}), root_symbols(specs)
    if not roots:
        return known
    runs = _trial(specs, run)
    lengths = [symbol for symbol, is_batch in roots if not is_batch] or [symbol for symbol, _ in roots]
    lows = {symbol: max(1, known.get(symbol, (1, None))[0]) for symbol, _ in roots}
    first = grid_sizes(specs, traced=shown, limits=known)[0]
    if runs(first) and (all(lows[symbol] == 1 for symbol in lengths) or runs(lows)):
        return known
    anchor = next((sizes for sizes in _anchors(specs, lengths, first, shown or {}, known) if runs(sizes)), None)
    if anchor is None:
        return known
    raised = known | {s: (_least(s, lows[s], anchor, runs), known.get(s, (1, None))[1]) for s in lengths}
    return raised if runs(grid_sizes(specs, traced=shown, limits=raised)[0]) else known


def _trial(specs: Sequence[InputSpec], run: Runner) -> Callable[[Mapping[str, int]], bool]:
    def runs(sizes: Mapping[str, int]) -> bool:
        try:
            return attempt(run, draw(specs, sizes).feeds)[0] is not None
        except (DeploymlError, ValueError):  # sizes that cannot be (n - 4 of n = 1), or memory ran out
            return False

    return runs


def _anchors(
    specs: Sequence[InputSpec],
    lengths: Sequence[str],
    first: Mapping[str, int],
    shown: Mapping[str, int],
    limits: Limits,
) -> list[dict[str, int]]:
    """Sizes to begin from: those of the example, else larger and larger ones."""
    long = signals((spec.name, spec.dtype, spec.shape) for spec in specs)
    shapes = [spec.shape for spec in specs]
    found = [{symbol: shown[symbol] for symbol in first}] if first.keys() <= shown.keys() else []
    for guess in _GUESSES:
        tried = {s: guess if s in long else min(guess, _TOKENS) for s in lengths}
        sizes = {**first, **{s: _within(size, limits.get(s, (1, None))) for s, size in tried.items()}}
        if sizes not in found and elements(shapes, sizes) <= _MOST_ELEMENTS:
            found.append(sizes)
    return [sizes for sizes in found if all(sizes[s] >= limits.get(s, (1, None))[0] for s in lengths)]


def _within(size: int, limit: tuple[int, int | None]) -> int:
    low, high = limit
    return max(low, size if high is None else min(size, high))


def _least(symbol: str, low: int, anchor: Mapping[str, int], runs: Callable[[Mapping[str, int]], bool]) -> int:
    """The least size of one axis at which the model runs, the others at the anchor: what runs at one runs above it."""
    fails, works = low - 1, anchor[symbol]
    while works - fails > 1:
        middle = (fails + works) // 2
        if runs({**anchor, symbol: middle}):
            works = middle
        else:
            fails = middle
    return works
