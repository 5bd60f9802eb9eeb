"""Axes that follow from others although a graph names them as axes of their own.

A decoder with a cache is often saved with a mask over "total" positions beside "seq" new and "past" cached ones. Drawn
apart, the three are sizes that no caller gives, and the graph dies at all of them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from .feeds import InputSpec, is_maskable, root_symbols
from .shapes import symbols_of

__all__ = ["ties"]

#: At most so many ways to tie are offered: each is a run of the model.
_MOST: Final = 32


def ties(specs: Sequence[InputSpec]) -> Iterator[tuple[InputSpec, ...]]:
    """Ways to read the mask axes that stand alone, the likeliest first; nothing where there is none.

    A mask's last axis that is an axis of no other input is held for "past + new", then for what it is called, then for
    "past"; what is called a sum ("past + 1") is first held for that. "past" is an axis that at least two inputs of four
    axes (keys and values) share, "new" the length of the token ids, or of their embeddings. The declared inputs are
    always among the ways.
    """
    alone = _alone(specs)
    past, new = _cached(specs), _new(specs)
    if not alone or not past:
        return
    sums = [f"{cached} + {new}" for cached in past if new is not None and cached != new]
    choices = [_readings(dim, sums, past) for dim in alone]
    for picked in itertools.islice(itertools.product(*choices), _MOST):
        yield _with(specs, dict(zip(alone, picked, strict=True)))


def _readings(dim: str, sums: Sequence[str], past: Sequence[str]) -> list[str]:
    """What a mask's axis may mean, the likeliest first."""
    return list(dict.fromkeys([*sums, dim, *past] if symbols_of(dim) == (dim,) else [dim, *sums, *past]))


def _with(specs: Sequence[InputSpec], meant: dict[str, str]) -> tuple[InputSpec, ...]:
    """The inputs with the masks' last axes replaced."""
    return tuple(
        replace(spec, shape=(*spec.shape[:-1], meant.get(str(spec.shape[-1]), spec.shape[-1])))
        if is_maskable(spec)
        else spec
        for spec in specs
    )


def _alone(specs: Sequence[InputSpec]) -> list[str]:
    """Last axes of masks that are no axis of another input: a name of their own, or a sum in its own words."""
    others = [dim for spec in specs if not is_maskable(spec) for dim in spec.shape]
    known = {symbol for dim in others for symbol in symbols_of(dim)}
    last = dict.fromkeys(spec.shape[-1] for spec in specs if is_maskable(spec))
    batch = {symbol for symbol, is_batch in root_symbols(specs) if is_batch}
    return [
        dim
        for dim in last
        if isinstance(dim, str) and dim not in known | batch and dim not in others  # "past + 1" is not "past"
    ]


def _cached(specs: Sequence[InputSpec]) -> list[str]:
    """Axes that at least two float inputs of four axes share, the third axis (the usual one) first."""
    batch = {symbol for symbol, is_batch in root_symbols(specs) if is_batch}
    caches = [spec.shape for spec in specs if len(spec.shape) == 4 and _is_float(spec) and not is_maskable(spec)]
    found: list[str] = []
    for axis in (2, 1, 3):
        times = Counter(dim for shape in caches if isinstance(dim := shape[axis], str))
        found += [dim for dim, count in times.items() if count > 1 and dim.isidentifier() and dim not in batch]
    return list(dict.fromkeys(found))


def _new(specs: Sequence[InputSpec]) -> str | None:
    """The length of the token ids [batch, new], or of embeddings [batch, new, width]; None where neither is there."""
    ids = [spec.shape[1] for spec in specs if spec.role == "token-ids" and len(spec.shape) == 2]
    embeds = [spec.shape[1] for spec in specs if spec.role == "values" and len(spec.shape) == 3 and _is_float(spec)]
    for length in (*ids, *embeds):
        if isinstance(length, int) or length.isidentifier():
            return str(length)
    return None


def _is_float(spec: InputSpec) -> bool:
    return "float" in spec.dtype
