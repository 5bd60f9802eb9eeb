"""Axes that a model needs equal although its trace leaves them apart: found by running it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .attempt import Runner, attempt
from .feeds import InputSpec, grid

__all__ = ["together"]


def together(specs: Sequence[InputSpec], shown: Mapping[str, int], run: Runner) -> tuple[InputSpec, ...]:
    """Inputs whose free axes have one name where they have one size in the example, if the model runs only so.

    ``key.view(query.size(0), -1, 4, 8)`` runs for any batches of which one divides the other: no trace says that the
    two are one batch, and cases that draw them apart do not run.

    Args:
        specs: The inputs.
        shown: Axis name to its size in the example.
        run: The model.

    Returns:
        The inputs as they are, where the model runs with all axes apart, where joining them does not help, or where no
        two have one size.
    """
    joined = _joined(specs, shown)
    if joined == tuple(specs) or _runs(specs, shown, run) or not _runs(joined, shown, run):
        return tuple(specs)
    return joined


def _runs(specs: Sequence[InputSpec], shown: Mapping[str, int], run: Runner) -> bool:
    cases = grid(specs, traced=shown, masks=("full",))
    return bool(cases) and attempt(run, cases[0].feeds)[0] is not None


def _joined(specs: Sequence[InputSpec], shown: Mapping[str, int]) -> tuple[InputSpec, ...]:
    first: dict[int, str] = {}
    names = {
        dim: first.setdefault(shown[dim], dim)
        for spec in specs
        for dim in spec.shape
        if isinstance(dim, str) and dim.isidentifier() and dim in shown
    }
    return tuple(replace(spec, shape=tuple(_renamed(dim, names) for dim in spec.shape)) for spec in specs)


def _renamed(dim: int | str, names: Mapping[str, str]) -> int | str:
    """A dimension with the names in it exchanged, also where it is a sum."""
    return dim if isinstance(dim, int) else re.sub(r"[A-Za-z_]\w*", lambda word: names.get(word[0], word[0]), dim)
