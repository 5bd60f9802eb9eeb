"""The judgement of a proof: the error of the new form against that of the old, both against float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from .rule import Safety

__all__ = ["FORBIDS", "Worst", "judge"]

#: Granted: this multiple of the error of the form that is replaced ...
ERROR_FACTOR: Final = 4.0
#: ... and never less than this many units in the last place of the largest output.
ULPS: Final = 64.0
#: A form this far from its float64 twin (one of halves: further than the units above) means something else than it
#: there (finite masks that swallow a score in one precision and not in the other): the twin is no reference, the
#: form itself is.
UNTRUSTED: Final = 1e-3
#: A row whose largest logit lies below has no key left: masks fill with -1e4 and less.
FORBIDS: Final = -5e3


@dataclass(slots=True)
class Worst:
    """The worst of all cases so far, relative to the largest output of each; ``ran`` counts outputs with numbers.

    ``grown`` holds the names of axes that were longer than 1 where numbers were compared.
    """

    ran: int = 0
    grown: set[str] = field(default_factory=set)
    error: float = 0.0
    unfused: float = 0.0
    granted: float = float("inf")
    needed: set[str] = field(default_factory=set)


def judge(
    old: Sequence[np.ndarray],
    new: Sequence[np.ndarray],
    exact: Sequence[np.ndarray] | None,
    alive: np.ndarray | None,
    safety: Safety,
    assumptions: Sequence[str],
    worst: Worst,
) -> str:
    """Compare one case. Returns a sentence on the first difference that is too large, or an empty string."""
    for index, (a, b) in enumerate(zip(old, new, strict=True)):
        if a.shape != b.shape:
            return f"output {index} has shape {b.shape} where the old form gives {a.shape}"
        if a.dtype != b.dtype:
            return f"output {index} is {b.dtype} where the old form gives {a.dtype}"
        if not a.size:
            continue
        if not np.issubdtype(a.dtype, np.floating) or safety is Safety.EXACT:
            worst.ran += 1
            if not np.array_equal(a, b, equal_nan=np.issubdtype(a.dtype, np.floating)):
                return f"output {index} is not bit-equal"
            continue
        reference = a.astype(np.float64) if exact is None else np.asarray(exact[index], np.float64)
        problem = _close(a, b, reference, None, worst, index)
        if problem and alive is not None:
            problem = _close(a, b, reference, _dead_rows(alive, a), worst, index)
            worst.needed.update(assumptions)
        if problem:
            return problem
    return ""


def _close(
    a: np.ndarray, b: np.ndarray, reference: np.ndarray, dead: np.ndarray | None, worst: Worst, index: int
) -> str:
    if dead is not None:
        a, b, reference = (np.where(dead, 0, x) for x in (a, b, reference))
    if not np.array_equal(np.isnan(b), np.isnan(a)):
        return f"output {index} has NaN in other places"
    finite = np.isfinite(reference) & np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return f"output {index} has infinities in other places"
    if not (finite if dead is None else finite & ~dead).any():
        return ""
    largest = float(np.max(np.abs(reference[finite]))) or 1.0
    unfused = float(np.max(np.abs(a[finite].astype(np.float64) - reference[finite]))) / largest
    floor = ULPS * float(np.finfo(a.dtype).eps)
    if unfused > max(UNTRUSTED, floor):
        reference, unfused = a.astype(np.float64), 0.0
        largest = float(np.max(np.abs(reference[finite]))) or 1.0
    error = float(np.max(np.abs(b[finite].astype(np.float64) - reference[finite]))) / largest
    granted = max(ERROR_FACTOR * unfused, floor)
    if error > granted:
        return f"output {index} is off by {error:.2e} of its largest value, {granted:.2e} was granted"
    worst.ran += 1
    worst.error, worst.unfused = max(worst.error, error), max(worst.unfused, unfused)
    worst.granted = min(worst.granted, granted)
    return ""


def _dead_rows(alive: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Rows with no key, broadcast to the output: (B, N, S) for (B, N, S, Hv), any head for (B, S, N * Hv).

    Where the two do not fit together (axes in another order) no row is excused.
    """
    dead = alive < FORBIDS
    if dead.shape == output.shape[:-1]:
        return np.broadcast_to(dead[..., None], output.shape)
    if output.ndim == dead.ndim == 3 and (dead.shape[0], dead.shape[2]) == output.shape[:2]:
        return np.broadcast_to(dead.any(axis=1)[..., None], output.shape)
    return np.zeros(output.shape, bool)
