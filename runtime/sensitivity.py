"""Whether outputs react to inputs: a comparison of constants passes for any graph and proves nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import numpy as np

from .attempt import Runner, attempt
from .compare import relative_error
from .feeds import Case
from .report import Comparison

__all__ = ["SENSITIVITY", "Reactions", "shortened", "shuffled"]

#: Stands for the name of a case in the comparison that says that an output does not react.
SENSITIVITY: Final = "sensitivity"


class Reactions:
    """Watches the outputs of a run and names those that never move by more than the tolerance.

    First it looks at cases whose outputs have the same shape; an output that has not moved by then is tried with
    the inputs of a few cases shuffled, and one of integers or booleans (lengths, a mask at a lower rate) with the
    masks of these cases cut short too.

    Args:
        names: Names of the outputs.
        tolerance: Relative change below which an output counts as unmoved.
        ignored: Outputs that need not move.
    """

    def __init__(self, names: Sequence[str], tolerance: float, ignored: Collection[str] = ()) -> None:
        self._names = tuple(names)
        self._tolerance = tolerance
        self._seen: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self._still = {index for index, name in enumerate(self._names) if name not in ignored}
        self._cases: list[tuple[Case, Sequence[np.ndarray]]] = []

    def add(self, case: Case, outputs: Sequence[np.ndarray]) -> None:
        """Take note of one case's outputs."""
        self._cases.append((case, outputs if self._still else ()))
        for index in sorted(self._still):
            first = self._seen.setdefault((index, outputs[index].shape), outputs[index])
            if first is not outputs[index]:
                self._note_change(index, first, outputs[index])

    def failures(self, run: Runner) -> list[Comparison]:
        """A failed comparison for each output that did not move, after trying the widest cases with other values."""
        wide = sorted(self._cases, key=lambda item: -sum(a.size for a in item[0].feeds.values()))
        tried = [item for item in wide if item[1]][:3]
        refused: list[str] = []
        for change in (shuffled, shortened):
            for case, outputs in tried:
                asked = [i for i in sorted(self._still) if change is shuffled or outputs[i].dtype.kind in "biu"]
                if not asked:
                    break
                moved, why = attempt(run, change(case.feeds))
                if moved is None:  # changed values may break a contract between inputs; other cases are left
                    refused.append(f"{case.name}: {why}")
                    continue
                for index in asked:
                    self._note_change(index, outputs[index], moved[index])
        return [self._failure(index, refused) for index in sorted(self._still)]

    def _note_change(self, index: int, one: np.ndarray, other: np.ndarray) -> None:
        change = relative_error(other, one)
        if change is None or change > self._tolerance:  # None: NaN came or went, which is a reaction too
            self._still.discard(index)

    def _failure(self, index: int, refused: Sequence[str]) -> Comparison:
        untried = f" (with shuffled inputs it does not run at {'; '.join(refused)})" if refused else ""
        return Comparison(
            case=SENSITIVITY,
            output=self._names[index],
            shape=(),
            needed=None,
            granted=self._tolerance,
            basis="an output must react to its inputs",
            verdict="fail",
            note=f"'{self._names[index]}' is insensitive: it moves by less than the tolerance when the inputs change, "
            f"so the comparison proves nothing{untried}; use weights and inputs that matter, or drop the output",
        )


def shuffled(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays with their values moved around, so that ranges and shapes stay valid.

    Masks (only zeros and ones) stay as they are unless every input is such a mask.
    """
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    masks = {name for name, array in arrays.items() if _is_mask(array)}
    fixed = set() if masks == set(arrays) else masks
    return {name: array if name in fixed else _moved(array) for name, array in arrays.items()}


def shortened(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays, masks (only zeros and ones) cut to the first half of their last axis; shapes stay."""
    arrays = {name: np.asarray(value) for name, value in feeds.items()}
    return {name: _cut(array) if _is_mask(array) else array for name, array in arrays.items()}


def _cut(mask: np.ndarray) -> np.ndarray:
    if mask.ndim == 0:
        return mask
    length = mask.shape[-1]
    return np.where(np.arange(length) < (length + 1) // 2, mask, np.zeros_like(mask))


def _is_mask(array: np.ndarray) -> bool:
    return array.dtype.kind in "biu" and bool(((array == 0) | (array == 1)).all())


def _moved(array: np.ndarray) -> np.ndarray:
    """Roll the values; an array of one value (or of all equal ones) is negated or stepped instead."""
    if array.size and (array != array.flat[0]).any():
        return np.roll(array, 1)
    if array.dtype.kind == "b":
        return ~array
    if array.dtype.kind in "iu":
        return np.where(array > 0, array - 1, array + 1).astype(array.dtype)
    return (array * np.asarray(0.5, array.dtype) + np.asarray(0.25, array.dtype)).astype(array.dtype)
