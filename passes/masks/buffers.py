"""Structure of constant arrays: uniform, linear in the indices, a band around the diagonal (a stored tril)."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from .logic import Bool, Number, all_of, choose, non_negative, pick, substitute
from .poly import ZERO, Axis, Poly
from .tensor import MAX_ELEMENTS, Memo, Tensor, from_elements, kind_of, literal

__all__ = ["read_constant"]

#: Float values up to here are exact integers in float32.
_EXACT: Final = float(1 << 24)


def read_constant(value: ir.Value, array: np.ndarray, dtype: ir.DataType, memo: Memo) -> Tensor | None:
    """The abstract tensor of a constant; opaque data when its content has no structure we know."""
    kind = kind_of(dtype)
    if kind is None:
        return None
    shape = tuple(Poly.number(n) for n in array.shape)
    if array.size == 0:
        return Tensor(shape, False if kind == "bool" else ZERO, kind, dtype)
    plain = array if kind == "bool" else array.astype(np.int64 if kind == "int" else np.float64)
    axes = [k for k in range(array.ndim) if not _same(plain, plain.take([0], axis=k))]
    core = plain[tuple(slice(None) if k in axes else 0 for k in range(array.ndim))]
    number = _structure(core, axes)
    if number is None:
        return memo.opaque(value, shape, dtype)
    return Tensor(shape, _as_bool(number) if kind == "bool" else number, kind, dtype)


def _same(left: np.ndarray, right: np.ndarray) -> bool:
    equal = left == right
    if left.dtype.kind == "f":
        equal |= np.isnan(left) & np.isnan(right)
    return bool(equal.all())


def _structure(core: np.ndarray, axes: list[int]) -> Number | None:
    if not axes:
        return literal(core.item())
    if len(axes) > 2:
        return None
    linear = None if core.dtype.kind == "b" else _linear(core, axes)
    if linear is not None:
        return linear
    found = _band(core, axes) if len(axes) == 2 else _interval(core, axes[0])
    if found is None and len(axes) == 1 and core.size <= MAX_ELEMENTS and core.dtype.kind != "b":
        chain = from_elements([literal(x) for x in core.tolist()], "int").expr
        return substitute(chain, {0: Poly.atom(Axis(axes[0]))})  # type: ignore[return-value]
    return found


def _linear(core: np.ndarray, axes: list[int]) -> Poly | None:
    """``start + sum of step * index`` with integer steps, when the array is just that."""
    start = core.flat[0].item()
    if not _integer(start) or not np.isfinite(core).all() or np.abs(core).max() > _EXACT:
        return None
    total, expected = Poly.number(start), np.full(core.shape, start, np.float64)
    for position, axis in enumerate(axes):
        step = core.take(1, axis=position).flat[0].item() - start
        if not _integer(step):
            return None
        total = total + Poly.number(step) * Poly.atom(Axis(axis))
        index = np.arange(core.shape[position], dtype=np.float64)
        expected = expected + step * index.reshape([-1 if p == position else 1 for p in range(core.ndim)])
    return total if np.array_equal(core.astype(np.float64), expected) else None


def _integer(number: float) -> bool:
    return float(number).is_integer()


def _two_values(core: np.ndarray) -> tuple[np.ndarray, float, float] | None:
    """(places of the first value, first value, other value) of an array of two values."""
    first = core.flat[0]
    if first != first:
        return None
    places = core == first
    others = core[~places]
    if others.size == 0 or not bool((others == others[0]).all()):
        return None
    return places, first.item(), others[0].item()


def _interval(core: np.ndarray, axis: int) -> Number | None:
    found = _two_values(core)
    if found is None:
        return None
    places, first, other = found
    for inside, here, there in ((places, first, other), (~places, other, first)):
        where = np.flatnonzero(inside)
        low, high = int(where[0]), int(where[-1])
        if high - low + 1 == where.size:
            return _between(Poly.atom(Axis(axis)), low, high, (0, core.size - 1), here, there)
    return None


def _band(core: np.ndarray, axes: list[int]) -> Number | None:
    found = _two_values(core)
    if found is None:
        return None
    places, first, other = found
    rows, columns = core.shape
    diagonal = np.arange(columns, dtype=np.int32)[None, :] - np.arange(rows, dtype=np.int32)[:, None]
    for inside, here, there in ((places, first, other), (~places, other, first)):
        on = diagonal[inside]
        low, high = int(on.min()), int(on.max())
        if np.array_equal(inside, (diagonal >= low) & (diagonal <= high)):
            offset = Poly.atom(Axis(axes[1])) - Poly.atom(Axis(axes[0]))
            return _between(offset, low, high, (1 - rows, columns - 1), here, there)
    return None


def _between(index: Poly, low: int, high: int, limits: tuple[int, int], inside: float, outside: float) -> Number:
    """A two-valued function of an index; a bound that the array's own edge gives is left out."""
    bounds: list[Bool] = []
    if low > limits[0]:
        bounds.append(non_negative(index.shift(-low)))
    if high < limits[1]:
        bounds.append(non_negative((-index).shift(high)))
    return pick(all_of(bounds), literal(inside), literal(outside))


def _as_bool(number: Number) -> Bool:
    """The truth of a decision tree whose leaves are 0 and 1."""
    if isinstance(number, Poly):
        return bool(number.constant)
    return choose(number.condition, _as_bool(number.then), _as_bool(number.otherwise))  # type: ignore[union-attr]
