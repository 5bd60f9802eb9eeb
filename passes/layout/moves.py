"""What a chain of nodes that only move elements does to them, found by moving their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name

__all__ = ["columns_of", "moved_from"]

Array = npt.NDArray[np.int64]
#: Elements a chain is tried on at most: 128 MiB of numbers.
_LARGEST: Final = 1 << 24
#: Sizes tried for named axes, one after the other; small primes, so that no two axes are taken for each other.
_PRIMES: Final = (2, 3, 5, 7)


def moved_from(value: ir.Value) -> list[ir.Value]:
    """The tensors whose elements ``value`` may be made of, itself first, then upstream through moving nodes."""
    chain = [value]
    while (node := chain[-1].producer()) is not None and op_name(node) in _MOVES and node.inputs[0] is not None:
        chain.append(node.inputs[0])
    return chain


def columns_of(value: ir.Value, source: ir.Value) -> Array | None:
    """Which columns of ``source`` the columns of ``value`` are, where rows stay what they are.

    Args:
        value: A (..., W') tensor made from ``source`` by moving nodes alone (see :func:`moved_from`).
        source: A (..., W) tensor of the same leading axes, W fixed.

    Returns:
        W' column numbers c with ``value[..., i] == source[..., c[i]]``; None where the value is anything else, or
        where constants do not tell.
    """
    sizes = _tried(source)
    if sizes is None:
        return None
    numbers = _moved(value, source, np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes))
    if numbers is None or numbers.shape[:-1] != sizes[:-1]:
        return None
    rows = numbers.reshape(-1, numbers.shape[-1])
    columns = rows - np.arange(len(rows), dtype=np.int64)[:, None] * sizes[-1]
    first: Array = columns[0]
    inside = bool(((first >= 0) & (first < sizes[-1])).all())
    return first if inside and bool((columns == first).all()) else None


def _tried(source: ir.Value) -> tuple[int, ...] | None:
    """A shape to try: fixed sizes as they are, a prime for every name."""
    found, shape = dims(source), []
    primes: dict[int | str | None, int] = {}
    for position, size in enumerate(found or ()):
        known = isinstance(size, int)
        free = next((p for p in _PRIMES if p not in primes.values()), None)
        if not known and free is None:
            return None
        shape.append(size if isinstance(size, int) else primes.setdefault(size or position, free or 0))
    if not shape or not isinstance((found or (None,))[-1], int) or not 0 < np.prod(shape) <= _LARGEST:
        return None
    return tuple(shape)


def _moved(value: ir.Value, source: ir.Value, numbers: Array) -> Array | None:
    """The numbers of ``source`` as they stand in ``value``."""
    if value is source:
        return numbers
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return None
    before = _moved(node.inputs[0], source, numbers)
    if before is None:
        return None
    try:
        return _MOVES[op_name(node)](node, before, node.outputs.index(value))
    except (TypeError, ValueError, IndexError):  # a parameter that is no constant, or does not fit these sizes
        return None


def _parameter(node: ir.Node, index: int, name: str) -> list[int] | None:
    """Integers given as an attribute or, newer, as an input; None where there are none.

    Raises:
        TypeError: for an input that is no constant.
    """
    if (given := attribute(node, name)) is not None:
        return list(given)
    if index >= len(node.inputs) or node.inputs[index] is None:
        return None
    found = constant(node.inputs[index])
    if found is None:
        raise TypeError(f"{name} is no constant")
    return [int(x) for x in found.flat]


def _reshape(node: ir.Node, x: Array, _: int) -> Array:
    wanted = _parameter(node, 1, "shape") or []
    if not attribute(node, "allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def _transpose(node: ir.Node, x: Array, _: int) -> Array:
    return x.transpose(attribute(node, "perm"))


def _squeeze(node: ir.Node, x: Array, _: int) -> Array:
    axes = _parameter(node, 1, "axes")
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(node: ir.Node, x: Array, _: int) -> Array:
    return np.expand_dims(x, tuple(_parameter(node, 1, "axes") or ()))


def _slice(node: ir.Node, x: Array, _: int) -> Array:
    starts, ends = _parameter(node, 1, "starts"), _parameter(node, 2, "ends")
    axes, steps = _parameter(node, 3, "axes"), _parameter(node, 4, "steps")
    count = len(starts or ())
    cut = [slice(None)] * x.ndim
    for axis, *bounds in zip(axes or range(count), starts or (), ends or (), steps or [1] * count, strict=True):
        start, end, step = bounds
        cut[axis] = slice(start, None if step < 0 and end < -x.shape[axis] else end, step)
    return x[tuple(cut)]


def _split(node: ir.Node, x: Array, index: int) -> Array:
    axis = attribute(node, "axis", 0)
    sizes = _parameter(node, 1, "split")
    if sizes is None:
        size = -(-x.shape[axis] // len(node.outputs))
        sizes = [size] * (len(node.outputs) - 1)
    return np.split(x, np.cumsum(sizes)[: len(node.outputs) - 1], axis=axis)[index]


def _gather(node: ir.Node, x: Array, _: int) -> Array:
    index = constant(node.inputs[1])
    if index is None:
        raise TypeError("the index is no constant")
    return x.take(index, axis=attribute(node, "axis", 0))


def _identity(node: ir.Node, x: Array, _: int) -> Array:
    return x


_MOVES: Final[Mapping[str, Callable[[ir.Node, Array, int], Array]]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Identity": _identity,
}
