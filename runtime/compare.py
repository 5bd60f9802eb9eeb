"""Comparing one output with its reference: the tolerance it needs, where, and how alike the two are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from .report import Comparison

__all__ = ["KEYLESS", "Granted", "compare", "grant", "relative_error"]

#: Half precision is granted this multiple of what the unfused graph of the same dtype needs,
_HALF_FACTOR: Final = 2.0
#: but never more than this: an unfused graph that is far off is no yardstick.
_HALF_CEILING: Final = 0.05

#: float32 and bfloat16 numbers beyond this mark something ("masked"), they measure nothing.
_SENTINEL: Final = 1e30
#: Begins the note on numbers that are left to the assumption.
KEYLESS: Final = "the reference is NaN where rows have no key (assumed: fully-masked-rows)"
#: A number that stands at several places and is this many times all others fills masked places (-1e4, -1e9, -65504).
_FILL: Final = 1e3


@dataclass(frozen=True, slots=True)
class Granted:
    """A tolerance relative to the largest reference value, and why that much."""

    tolerance: float
    basis: str


def compare(
    output: np.ndarray,
    reference: np.ndarray,
    *,
    case: str,
    output_name: str,
    granted: Granted,
    masks: Sequence[np.ndarray] = (),
    same_dtype: bool = True,
    keyless: bool = False,
) -> Comparison:
    """Judge ``output`` against ``reference``.

    The needed tolerance is the largest absolute difference over the largest finite absolute value of the reference
    (over 1 where the reference is all zeros). A number that fills masked places is held against itself and is no
    measure of the others. NaN and infinities must be at the same places; integers and booleans
    must be equal; a different shape or dtype fails. All positions count. Only where an output [batch, length, ...]
    differs too much, and a mask [batch, length] says that some positions are padded, are the real positions judged
    on their own; the note then says how much the padded ones differ. Likewise for samples of an output
    [batch, ...] that are masked out entirely.

    Args:
        output: What the graph computed.
        reference: What it should have computed.
        case: Name of the case.
        output_name: Name of the output.
        granted: The tolerance and why.
        masks: Boolean masks [batch, length] of the case, True at real positions.
        same_dtype: Whether dtypes must be equal; False lets the reference be a wider float.
        keyless: Whether attention rows without a key are left to an assumption: PyTorch has NaN for them, and what the
            graph has there is not judged. The note counts such places.
    """
    output, reference = np.asarray(output), np.asarray(reference)
    blank = Comparison(
        case=case,
        output=output_name,
        shape=tuple(reference.shape),
        needed=math.inf,
        granted=granted.tolerance,
        basis=granted.basis,
        verdict="fail",
    )
    mismatch = _mismatch(output, reference, same_dtype)
    if mismatch is not None:
        return replace(blank, note=mismatch)
    defined = _defined(output, reference) if keyless else None
    if defined is not None:
        blank = replace(blank, note=f"{KEYLESS}: {int((~defined).sum())} of {defined.size} numbers are not compared")
    whole = _judge(blank, output, reference, defined)
    keep = _real_positions(reference.shape, masks)
    if whole.verdict == "pass" or keep is None:
        return whole
    real = _judge(blank, output, reference, keep if defined is None else keep & defined)
    if real.verdict != "pass":
        return replace(real, note=real.note or f"at real positions; over all, {_amount(whole)}")
    return replace(real, note=f"padded positions differ by {_amount(whole)}; real ones were judged")


def _defined(output: np.ndarray, reference: np.ndarray) -> np.ndarray | None:
    """Where a float reference is a number, or the output is none either; None if that is everywhere."""
    if _kind(reference) != "f":
        return None
    found = ~np.isnan(reference.astype(np.float64)) | np.isnan(output.astype(np.float64))
    return None if found.all() else found


def grant(
    tolerance: float,
    basis: str,
    output: np.ndarray,
    reference: np.ndarray,
    unfused: np.ndarray | None,
    *,
    halves: bool = False,
) -> Granted:
    """The tolerance for one output: the given one, or for half precision a multiple of the unfused graph's error.

    With ``halves`` the graph computes in half precision somewhere: a float32 output is no more exact for it.
    """
    error = None if unfused is None else relative_error(unfused, reference)
    if error is None:
        return Granted(tolerance, basis)
    said = f"{basis}; unfused needs {error:.1e}"
    dtype = np.asarray(output).dtype
    if _kind(np.asarray(output)) != "f" or not (dtype.itemsize == 2 or halves):
        return Granted(tolerance, said)
    allowed = min(max(tolerance, _HALF_FACTOR * error), _HALF_CEILING)
    inside = str(dtype) if dtype.itemsize == 2 else f"{dtype}, half precision inside"
    return Granted(allowed, f"{_HALF_FACTOR:g}x the unfused error {error:.1e} ({inside})")


def relative_error(output: np.ndarray, reference: np.ndarray) -> float | None:
    """Largest difference over the largest finite reference value; None where the two cannot be compared."""
    output, reference = np.asarray(output), np.asarray(reference)
    if _mismatch(output, reference, same_dtype=False) is not None:
        return None
    found = _judge(_UNJUDGED, output, reference, None)
    return found.needed


_UNJUDGED: Final = Comparison(case="", output="", shape=(), needed=math.inf, granted=math.inf, basis="")


def _mismatch(output: np.ndarray, reference: np.ndarray, same_dtype: bool) -> str | None:
    if output.shape != reference.shape:
        return f"shape is {list(output.shape)}, the reference has {list(reference.shape)}"
    if _kind(output) != _kind(reference) or (same_dtype and output.dtype != reference.dtype):
        return f"dtype is {output.dtype}, the reference has {reference.dtype}"
    if _kind(reference) == "?":
        return f"values of dtype {reference.dtype} cannot be compared"
    if output.size == 0:
        return "there are no elements to compare"
    return None


def _kind(array: np.ndarray) -> str:
    """Class of a dtype: "f" float (ml_dtypes' own too), "c" complex, "i" integer or boolean, "?" other."""
    if array.dtype.kind in "iub":
        return "i"
    if array.dtype.kind in "fc":
        return array.dtype.kind
    return "f" if "float" in array.dtype.name else "?"


def _judge(blank: Comparison, output: np.ndarray, reference: np.ndarray, keep: np.ndarray | None) -> Comparison:
    """Fill ``blank`` with the numbers over the positions in ``keep`` (None: all)."""
    kind = _kind(reference)
    wide = {"f": np.float64, "c": np.complex128, "i": np.int64}[kind]
    if reference.dtype == np.uint64:
        wide = np.uint64
    ours, theirs = output.astype(wide), reference.astype(wide)
    inside = np.ones(theirs.shape, bool) if keep is None else np.broadcast_to(keep, theirs.shape)
    if kind == "i":
        return _judge_integers(blank, ours, theirs, inside)
    ours, theirs = _sentinels_to_infinity(ours), _sentinels_to_infinity(theirs)
    if not _same_specials(ours, theirs, inside):
        where = _first_special(ours, theirs, inside)
        note = f"NaN or infinity is not at the same places, first at {list(where)}: {ours[where]} for {theirs[where]}"
        return replace(blank, nan_match=False, worst=where, note=note)
    finite = inside & np.isfinite(theirs)
    if not finite.any():
        note = "the reference has no finite value here: nothing to compare"
        return replace(blank, needed=None, verdict="not-run", note=note)
    with np.errstate(invalid="ignore"):
        difference = np.where(finite, np.abs(ours - theirs), -1.0)
    share = difference / _scales(theirs, finite)
    worst = tuple(int(i) for i in np.unravel_index(int(share.argmax()), share.shape))
    needed = float(share[worst])
    return replace(
        blank,
        needed=needed,
        max_abs=float(difference[worst]),
        worst=worst,
        cosine=_cosine(ours[finite], theirs[finite]),
        top1=_top1(blank.output, ours, theirs, finite),
        verdict="pass" if needed <= blank.granted else "fail",
    )


def _scales(theirs: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """What a difference is measured by at each place: the largest reference value, for fills their own size."""
    size = np.where(finite, np.abs(theirs), 0.0)
    scales, rest = np.ones(size.shape), finite
    while rest.any():
        largest = float(size[rest].max())
        scales[rest] = largest if largest > 0 else 1.0
        fill = rest & (theirs == theirs[rest & (size == largest)][0])
        others = rest & ~fill
        if largest < _FILL or fill.sum() < 2 or not others.any() or size[others].max() * _FILL > largest:
            break
        rest = others
    return scales


def _judge_integers(blank: Comparison, ours: np.ndarray, theirs: np.ndarray, inside: np.ndarray) -> Comparison:
    """Integers and booleans are equal or wrong: a tolerance relative to the largest of them would hide errors."""
    wrong = inside & (ours != theirs)
    if not inside.any():
        return replace(blank, needed=None, verdict="not-run", note="there is no real position to compare")
    basis = "integers must be equal"
    if not wrong.any():
        return replace(blank, needed=0.0, max_abs=0.0, worst=(0,) * ours.ndim, verdict="pass", basis=basis)
    worst = tuple(int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
    gap = float(max(abs(int(a) - int(b)) for a, b in zip(ours[wrong].flat, theirs[wrong].flat, strict=True)))
    note = f"{int(wrong.sum())} of {int(inside.sum())} integers differ"
    return replace(blank, max_abs=gap, worst=worst, note=note, basis=basis)


def _sentinels_to_infinity(values: np.ndarray) -> np.ndarray:
    """Masked scores hold the lowest number of their dtype; as a scale it would make every error look like none."""
    if np.iscomplexobj(values):
        return values
    return np.where(np.abs(values) >= _SENTINEL, np.copysign(np.inf, values), values)


def _same_specials(ours: np.ndarray, theirs: np.ndarray, inside: np.ndarray) -> bool:
    return not _special_mismatch(ours, theirs, inside).any()


def _first_special(ours: np.ndarray, theirs: np.ndarray, inside: np.ndarray) -> tuple[int, ...]:
    flat = int(_special_mismatch(ours, theirs, inside).argmax())
    return tuple(int(i) for i in np.unravel_index(flat, ours.shape))


def _special_mismatch(ours: np.ndarray, theirs: np.ndarray, inside: np.ndarray) -> np.ndarray:
    wrong = np.isnan(ours) != np.isnan(theirs)
    infinite = np.isinf(ours) | np.isinf(theirs)
    both_nan = np.isnan(ours) & np.isnan(theirs)
    wrong |= infinite & ~both_nan & (ours != theirs)
    return wrong & inside


def _real_positions(shape: tuple[int, ...], masks: Sequence[np.ndarray]) -> np.ndarray | None:
    """The positions to judge, shaped to broadcast; None if all, or if no mask or more than one fits.

    For [batch, length, ...] those that the mask calls real. For other [batch, ...] outputs the samples that are not
    masked out entirely: what attention gives where no key is left is an assumption, not a value.
    """
    fitting = [m for m in masks if len(shape) >= 2 and shape[:2] == m.shape]
    if not fitting:
        fitting = [m.any(axis=1) for m in masks if len(shape) >= 1 and shape[0] == m.shape[0]]
    if len(fitting) != 1 or fitting[0].all():
        return None
    return fitting[0].reshape(*fitting[0].shape, *(1,) * (len(shape) - fitting[0].ndim))


def _amount(found: Comparison) -> str:
    if not found.nan_match:
        return "NaN or infinities"
    return "no number" if found.needed is None else f"{found.needed:.1e} (needed)"


def _cosine(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    lengths = float(np.linalg.norm(ours)) * float(np.linalg.norm(theirs))
    if lengths == 0.0:
        return None
    return float(min(1.0, max(-1.0, np.real(np.vdot(theirs, ours)) / lengths)))


def _top1(name: str, ours: np.ndarray, theirs: np.ndarray, finite: np.ndarray) -> float | None:
    """Share of rows with the same arg max, for outputs called logits or scores."""
    logits_like = any(word in name.lower() for word in ("logit", "score"))
    if not logits_like or ours.ndim < 2 or ours.shape[-1] < 2 or np.iscomplexobj(ours):
        return None
    rows = finite.all(axis=-1)
    if not rows.any():
        return None
    same: Any = ours[rows].argmax(-1) == theirs[rows].argmax(-1)
    return float(same.mean())
