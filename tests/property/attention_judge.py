"""Whether a fused module is right: against eager in float64, and against itself on inputs that must not matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .attention_feed import inputs, padded, part_of_batch, rows_with_keys
from .attention_heads import in_given_order
from .attention_spec import AttentionSpec

__all__ = ["SIZES", "Judged", "Run", "judge"]

#: (batch, queries, keys) that the trace did not see; it saw (3, 7, 5).
SIZES = ((2, 9, 11), (1, 13, 4), (1, 1, 1))
#: Error granted, relative to the largest output, or this multiple of the error of the unfused module.
GRANTED = {torch.float32: 2e-5, torch.float16: 4e-3}
FACTOR = 8.0
#: A row without keys holds rounding noise of its fill (1e-3 beside a fill of 1e4) when it holds a mean.
GRANTED_IN_EMPTY_ROWS = 1e-2
#: Positions of padding that one more run adds.
MORE = 4

Run = Callable[[Mapping[str, torch.Tensor]], Sequence[np.ndarray]]


@dataclass
class Judged:
    """What was found for one attention.

    Attributes:
        problem: A sentence when the fused module is wrong, else "".
        error: Largest error against float64 in rows that have keys, relative to the largest output.
        faulty_export: Whether the exported graph was wrong before anything was fused.
        unfair: Whether eager itself was not finite.
    """

    problem: str = ""
    error: float = 0.0
    faulty_export: bool = False
    unfair: bool = False


@dataclass(frozen=True)
class _Slot:
    """One output: of which attention, and what it is."""

    index: int
    spec: AttentionSpec
    kind: str


@dataclass(frozen=True)
class _Outputs:
    """One output of every form: fused, unfused, eager in the module's dtype and in float64."""

    fused: np.ndarray
    unfused: np.ndarray
    plain: np.ndarray
    exact: np.ndarray


def judge(
    specs: Sequence[AttentionSpec],
    module: torch.nn.Module,
    fused: Run,
    unfused: Run,
    assumed: Sequence[bool],
    seed: int,
    moved: Run | None = None,
) -> list[Judged]:
    """Compare at every size. ``assumed`` says which attentions recorded that rows without keys may differ.

    ``moved`` runs the same module, fused, with its heads in another order.
    """
    dtype = next(module.parameters()).dtype
    slots = [_Slot(n, s, kind) for n, s in enumerate(specs) for kind in ("output", "weights")[: 1 + s.weights]]
    results = [Judged() for _ in specs]
    for number, size in enumerate(SIZES):
        given = inputs(size, seed + number, dtype)
        forms = [
            _Outputs(*four)
            for four in zip(fused(given), unfused(given), _eager(module, given), _exact(module, given), strict=True)
        ]
        for slot, form in zip(slots, forms, strict=True):
            alive = _alive(slot, rows_with_keys(slot.spec, given), form.exact.ndim)
            _add(results[slot.index], form, alive, assumed[slot.index], f"{slot.kind} at {size}")
        if number == 0:
            first = [form.fused for form in forms]
            _batches(results, slots, first, fused, given)
            _padding(results, slots, first, fused, given, seed)
            if moved is not None:
                _heads(results, slots, first, moved(given), given)
    return results


def _eager(module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        return [(r.float() if r.dtype == torch.bfloat16 else r).numpy() for r in module(**given)]


def _exact(module: torch.nn.Module, given: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
    dtype = next(module.parameters()).dtype
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    try:
        return _eager(module.double(), wide)
    finally:
        module.to(dtype)


def _add(result: Judged, form: _Outputs, alive: np.ndarray, assumed: bool, where: str) -> None:
    if not _finite(form, alive):
        result.unfair = True
        return
    error, problem = _compare(form, form.fused, alive, assumed=assumed)
    result.error = max(result.error, error)
    if problem and _compare(form, form.unfused, alive, assumed=assumed)[1]:
        result.faulty_export = True  # the export is at fault, before anything was fused
    elif problem and not result.problem:
        result.problem = f"{where}: {problem}"


def _alive(slot: _Slot, alive: np.ndarray, rank: int) -> np.ndarray:
    """The (B, S) flags in the axes of a result."""
    spec = slot.spec
    if slot.kind == "output":
        return (alive.T if spec.time_first else alive)[..., None]
    if rank == 3:  # (B * N, S, T)
        return np.repeat(alive, spec.heads, axis=0)[..., None]
    if spec.product == "einsum" and spec.letters == "hbqk":
        return alive[None, :, :, None]
    if spec.product == "einsum" and spec.letters == "bqhk":
        return alive[:, :, None, None]
    return alive[:, None, :, None]


def _finite(form: _Outputs, alive: np.ndarray) -> bool:
    where = np.broadcast_to(alive, form.exact.shape)
    return bool(np.isfinite(form.exact[where]).all() and np.isfinite(form.plain[where]).all())


def _compare(form: _Outputs, found: np.ndarray, alive: np.ndarray, *, assumed: bool) -> tuple[float, str]:
    """(error in rows with keys, a sentence when the result is wrong)."""
    plain, exact = form.plain, form.exact
    if found.shape != plain.shape or found.dtype != plain.dtype:
        shapes = f"{found.dtype}{list(found.shape)}, eager gives {plain.dtype}{list(plain.shape)}"
        return 0.0, f"the result is {shapes}"
    where = np.broadcast_to(alive, found.shape)
    largest = float(np.max(np.abs(exact[where]), initial=0.0)) or 1.0
    error = _furthest(found, exact, where) / largest
    own = max(_furthest(plain, exact, where), _furthest(form.unfused, exact, where)) / largest
    own = own if np.isfinite(own) else 0.0
    if not error <= max(_granted(found), FACTOR * own):
        return error, f"off by {error:.1e} of the largest output (unfused: {own:.1e})"
    empty = ~where
    if assumed or not empty.any():
        return error, ""
    if not np.array_equal(np.isnan(found[empty]), np.isnan(plain[empty])):
        return error, "NaN in other rows without keys, and no assumption says so"
    both = empty & ~np.isnan(plain)
    apart = _furthest(found, plain, both) / largest
    if apart > _granted(found) * GRANTED_IN_EMPTY_ROWS / GRANTED[torch.float32]:
        return error, f"rows without keys differ by {apart:.1e} from eager, and no assumption says so"
    return error, ""


def _granted(like: np.ndarray) -> float:
    return GRANTED[torch.float16 if like.dtype == np.float16 else torch.float32]


def _furthest(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(np.max(np.abs(a[where].astype(np.float64) - b[where]), initial=0.0))


def _batches(
    results: list[Judged],
    slots: Sequence[_Slot],
    whole: Sequence[np.ndarray],
    fused: Run,
    given: Mapping[str, torch.Tensor],
) -> None:
    """Each row of a batch alone gives what it gave among the others."""
    rows = [fused(part_of_batch(given, row)) for row in range(given["x"].shape[0])]
    for position, slot in enumerate(slots):
        if slot.kind == "output":
            again = np.concatenate([row[position] for row in rows], axis=int(slot.spec.time_first))
            alive = _alive(slot, rows_with_keys(slot.spec, given), again.ndim)
            _same(results[slot.index], whole[position], again, alive, "a batch split into its rows")


def _padding(
    results: list[Judged],
    slots: Sequence[_Slot],
    whole: Sequence[np.ndarray],
    fused: Run,
    given: Mapping[str, torch.Tensor],
    seed: int,
) -> None:
    """More padding behind changes nothing before it, where a mask forbids padding."""
    again = fused(padded(given, MORE, seed + 17))
    for position, slot in enumerate(slots):
        masks = set(slot.spec.masks)
        moved = slot.spec.reduce or slot.spec.memory in ("zeros", "sequence")  # keys that padding mixes with or moves
        if slot.kind == "output" and masks & {"padding", "lengths"} and "lower_right" not in masks and not moved:
            rows = given["x"].shape[1]
            kept = again[position][:rows] if slot.spec.time_first else again[position][:, :rows]
            alive = _alive(slot, rows_with_keys(slot.spec, given), kept.ndim)
            _same(results[slot.index], whole[position], kept, alive, f"{MORE} more positions of padding")


def _heads(
    results: list[Judged],
    slots: Sequence[_Slot],
    whole: Sequence[np.ndarray],
    moved: Sequence[np.ndarray],
    given: Mapping[str, torch.Tensor],
) -> None:
    """Heads in another order change nothing."""
    for position, slot in enumerate(slots):
        if slot.kind == "output":
            again = in_given_order(moved[position], slot.spec)
            alive = _alive(slot, rows_with_keys(slot.spec, given), again.ndim)
            _same(results[slot.index], whole[position], again, alive, "another order of the heads")


def _same(result: Judged, before: np.ndarray, after: np.ndarray, alive: np.ndarray, change: str) -> None:
    if result.problem or result.unfair or result.faulty_export:
        return
    where = np.broadcast_to(alive, before.shape)
    largest = float(np.max(np.abs(before[where].astype(np.float64)), initial=0.0)) or 1.0
    apart = _furthest(before, after, where) / largest
    if not apart <= max(_granted(before), FACTOR * result.error):
        result.problem = f"{change} moves the output by {apart:.1e} of its largest value"
