"""The least sizes that a model takes, found by running it: 100 samples of speech make no frame.

A graph does not say at which length its convolutions leave something to attend to, and torch's bound on a traced axis
may lie below it. Comparing at sizes that the model refuses compares nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .attempt import Runner, attempt
from .errors import DeploymlError
from .feeds import InputSpec, draw, elements, grid, root_symbols
from .shapes import symbols_of

__all__ = ["Limits", "least_sizes"]

#: Symbol to its smallest and largest size (None: no limit).
Limits = Mapping[str, tuple[int, int | None]]

#: Sizes to find one at which a model runs, where no example shows one; beyond a thousand for signals alone, as so many
#: tokens would fill the memory.
_GUESSES: Final = tuple(2**power for power in range(5, 17))
_TOKENS: Final = 1024
#: No input of more elements is tried.
_MOST_ELEMENTS: Final = 1 << 21


def least_sizes(
    specs: Sequence[InputSpec], run: Runner, *, shown: Mapping[str, int] | None = None, limits: Limits | None = None
) -> dict[str, tuple[int, int | None]]:
    """Raise the smallest size of each axis but the batch to one at which the model runs.

    A model that runs at the first sizes of the parity grid, and at smallest sizes that are known, keeps its limits; so
    does one that runs nowhere.

    Args:
        specs: The model's inputs.
        run: The model.
        shown: Symbol to its size in an example.
        limits: What is known before.

    Returns:
        The limits, with those lower ends raised below which the model refuses its inputs.
    """
    known = dict(limits or {})

    def runs(sizes: Mapping[str, int]) -> bool:
        try:
            case = draw(specs, sizes)
            return attempt(run, case.feeds)[0] is not None
        except DeploymlError:  # a size that cannot be, or memory ran out
            return False

    first = grid(specs, traced=shown, limits=known, masks=())[0]
    roots = root_symbols(specs)
    lows = {symbol: max(1, known.get(symbol, (1, None))[0]) for symbol, _ in roots}
    bounded = any(lows[symbol] > 1 for symbol, is_batch in roots if not is_batch)
    if not roots or (runs(first.sizes) and not (bounded and not runs(lows))):
        return known
    anchor = next((sizes for sizes in _anchors(specs, first.sizes, shown or {}, known) if runs(sizes)), None)
    if anchor is None:
        return known
    for symbol, is_batch in roots:
        if not is_batch:
            low, high = known.get(symbol, (1, None))
            known[symbol] = (_least(symbol, low, anchor, runs), high)
    return known


def _anchors(
    specs: Sequence[InputSpec], first: Mapping[str, int], shown: Mapping[str, int], limits: Limits
) -> list[dict[str, int]]:
    """Sizes to begin from: those of the example, else larger and larger ones."""
    roots = root_symbols(specs)
    found = [{symbol: shown[symbol] for symbol, _ in roots}] if all(symbol in shown for symbol, _ in roots) else []
    floats = [spec.shape for spec in specs if spec.shape and spec.dtype.startswith("float")]
    signals = {symbol for shape in floats for symbol in symbols_of(shape[-1])}
    for guess in _GUESSES:
        sizes = {
            symbol: first[symbol] if is_batch else _within(guess, limits.get(symbol, (1, None)))
            for symbol, is_batch in roots
        }
        if guess > _TOKENS and not signals.issuperset(symbol for symbol, is_batch in roots if not is_batch):
            break
        if sizes not in found and elements(specs, sizes) <= _MOST_ELEMENTS:
            found.append(sizes)
    return found


def _within(size: int, limit: tuple[int, int | None]) -> int:
    low, high = limit
    return max(low, size if high is None else min(size, high))


def _least(symbol: str, low: int, anchor: Mapping[str, int], runs: Callable[[Mapping[str, int]], bool]) -> int:
    """The least size of one axis at which the model runs, the others at the anchor: what runs at one runs above it."""
    fails, works = max(0, low - 1), anchor[symbol]
    while works - fails > 1:
        middle = (fails + works) // 2
        if runs({**anchor, symbol: middle}):
            works = middle
        else:
            fails = middle
    return works
