"""Example sizes that a model takes: those chosen for their names, or larger ones where it refuses these."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from ...runtime.feeds import elements, is_called_batch, signals
from ...runtime.shapes import symbols_of
from .sizes import Limits, choose_sizes, limit_of
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
    growing = _growing(specs, first)
    if not growing or runs(first):
        return first, ()
    long = signals((spec.name, spec.dtype, spec.dims) for spec in specs)
    found: dict[str, int] | None = None
    for least in _LARGER:
        larger = {name: (least if name in long else min(least, _TOKENS), limit_of(name, limits)[1]) for name in growing}
        sizes = choose_sizes(specs, taken, {**limits, **larger})
        runs_there = elements((spec.dims for spec in specs), sizes) <= _MOST_ELEMENTS and runs(sizes)
        if found is not None:  # one size more than it takes: at the least there may be a single frame
            found = sizes if runs_there else found
            break
        found = sizes if runs_there else None
    if found is None:
        return first, ()
    listed = ", ".join(f"{name} is {found[name]}" for name in growing)
    return found, (f"in the example inputs {listed}: the model does not run on the small ones that were tried",)


def _growing(specs: tuple[InputSpec, ...], names: Iterable[str]) -> list[str]:
    """All names of sizes but the batch, which goes by its name or leads an input."""
    batch = {name for name in names if is_called_batch(name)}
    leading = {symbol for spec in specs if len(spec.dims) > 1 for symbol in symbols_of(spec.dims[0])}
    batch = batch & leading or batch or leading
    return [name for name in names if name not in batch] or list(names)


def does_run(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a module runs on these inputs; what it draws at random or keeps for the next call is taken back."""
    import torch

    from ..capture.quiet import quiet
    from ..capture.trace import slow_paths

    with quiet(), slow_paths(), torch.no_grad(), torch.random.fork_rng(devices=[]), _forgetting(module):
        try:
            module(*args, **kwargs)
        except Exception:  # a model raises what it likes; whether it was the size shows at another
            return False
    return True


@contextmanager
def _forgetting(module: Any) -> Iterator[None]:
    """Put back what a module binds to itself inside the block: a table made for one length is a limit to a trace."""
    kept = [(part, dict(vars(part)), _copies(part)) for part in module.modules()]
    try:
        yield
    finally:
        for part, names, held in kept:
            vars(part).clear()
            vars(part).update(names)
            for container, content in held:
                container.clear()
                container.update(content)


def _copies(part: Any) -> list[tuple[Any, Any]]:
    """The containers in which a module keeps its buffers and parts, each with a copy of what is in it."""
    return [(value, value.copy()) for value in vars(part).values() if type(value) in (dict, set, OrderedDict)]
