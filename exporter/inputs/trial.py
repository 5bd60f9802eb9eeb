"""Example sizes that a model takes: those chosen for their names, or larger ones where it refuses these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any, Final

from ...runtime.shapes import evaluate, symbols_of
from .sizes import Limits, choose_sizes
from .spec import InputSpec

__all__ = ["does_run", "sizes_that_run"]

#: Least sizes to try in turn; the last, a second of speech, for signals alone: so many tokens would fill the memory.
_LARGER: Final = (64, 256, 1024, 4096, 16384)
_TOKENS: Final = 1024
#: No input of more elements is made up.
_MOST_ELEMENTS: Final = 1 << 22


def sizes_that_run(
    specs: tuple[InputSpec, ...], taken: set[int], limits: Limits, runs: Callable[[dict[str, int]], bool]
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Choose a size for every dimension name, so that the model runs if that can be.

    Args:
        specs: The inputs, as the user wrote them.
        taken: Numbers of the model, which no size should equal.
        limits: Bounds by dimension name.
        runs: Whether the model runs at some sizes.

    Returns:
        The sizes, and sentences for the user. Where the model runs at none, those chosen for their names.
    """
    first = choose_sizes(specs, taken, limits)
    leading = {symbol for spec in specs if len(spec.dims) > 1 for symbol in symbols_of(spec.dims[0])}
    growing = [name for name in first if name not in leading] or list(first)
    if not growing or runs(first):
        return first, ()
    found: dict[str, int] | None = None
    for least in _LARGER if _is_signal(specs, growing) else _LARGER[: _LARGER.index(_TOKENS) + 1]:
        sizes = choose_sizes(specs, taken, {**limits, **dict.fromkeys(growing, (least, None))})
        runs_there = _elements(specs, sizes) <= _MOST_ELEMENTS and runs(sizes)
        if found is not None:  # one size more than it takes: at the least there may be a single frame
            found = sizes if runs_there else found
            break
        found = sizes if runs_there else None
    if found is None:
        return first, ()
    listed = ", ".join(f"{name} is {found[name]}" for name in growing)
    return found, (f"in the example inputs {listed}: the model does not run on the small ones that were tried",)


def _is_signal(specs: tuple[InputSpec, ...], growing: list[str]) -> bool:
    """Whether every axis that may grow is the last of some input of floats: no features stand behind it."""
    last = {symbol for spec in specs if spec.dims and "float" in spec.dtype for symbol in symbols_of(spec.dims[-1])}
    return last.issuperset(growing)


def does_run(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a module runs on these inputs; random numbers that it draws are given back."""
    import torch

    from ..capture.quiet import quiet

    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            module(*args, **kwargs)
        except Exception:  # a model raises what it likes; whether it was the size shows at another
            return False
    return True


def _elements(specs: tuple[InputSpec, ...], sizes: dict[str, int]) -> int:
    return max(prod(evaluate(dim, sizes) for dim in spec.dims) for spec in specs)
