"""A tensor that is a value of a graph: what the written modules do with tensors writes nodes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from .onnx_tape import Size, Tape, key_of

__all__ = ["TYPES", "Tensor", "Whole", "array_of", "joined", "lift"]

#: A length: a number, one known at run time, or None for one nobody has asked for.
Whole = int | Size | None

#: Element types.
TYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}
_EVERYTHING = slice(None)


def array_of(item: torch.Tensor) -> np.ndarray:
    """The numbers of a tensor; numpy itself has no bfloat16."""
    held = item.detach()
    return held.float().numpy().astype(TYPES[item.dtype].numpy()) if item.dtype == torch.bfloat16 else held.numpy()


def lift(tape: Tape, item: Any, dtype: torch.dtype) -> Tensor:
    """A Python number, a length or a torch tensor as a constant of the graph; a Tensor as it is."""
    if isinstance(item, Tensor):
        return item
    if isinstance(item, Size):
        return Tensor(tape, item.scalar(), (), torch.int64).to(dtype)
    if isinstance(item, torch.Tensor):
        return Tensor(tape, tape.const(array_of(item)), tuple(item.shape), item.dtype)
    return Tensor(tape, tape.const(np.asarray(item, TYPES[dtype].numpy())), (), dtype)


def joined(a: Sequence[Whole], b: Sequence[Whole]) -> tuple[Whole, ...]:
    """The shape two shapes broadcast to."""
    rank = max(len(a), len(b))
    left, right = ((1,) * (rank - len(s)) + tuple(s) for s in (a, b))
    return tuple(y if x == 1 or (x is None and y != 1) else x for x, y in zip(left, right, strict=True))


class Tensor:
    """A value with its rank, what is known of its lengths, and its torch dtype."""

    def __init__(self, tape: Tape, value: ir.Value, dims: Sequence[Whole], dtype: torch.dtype) -> None:
        self.tape, self.value, self.dims, self.dtype = tape, value, list(dims), dtype

    def made(self, value: ir.Value, dims: Sequence[Whole], dtype: torch.dtype | None = None) -> Tensor:
        """Another tensor of the same tape."""
        return Tensor(self.tape, value, dims, dtype or self.dtype)

    def op(self, op: str, *more: ir.Value, **attributes: Any) -> Tensor:
        """An operator that keeps shape and dtype."""
        return self.made(self.tape.op(op, self.value, *more, **attributes), self.dims)

    # --- what it is

    def dim(self) -> int:
        return len(self.dims)

    def size_of(self, axis: int) -> int | Size:
        """The length of an axis, read from the graph when nothing is known."""
        axis %= len(self.dims)
        known = self.dims[axis]
        if known is None:
            known = self.dims[axis] = self.tape.size(self.value, axis, f"{self.value.name}.{axis}")
        return known

    @property
    def shape(self) -> tuple[int | Size, ...]:
        return tuple(self.size_of(axis) for axis in range(len(self.dims)))

    def to(self, dtype: torch.dtype) -> Tensor:
        if dtype == self.dtype:
            return self
        return self.made(self.tape.op("Cast", self.value, to=TYPES[dtype]), self.dims, dtype)

    def long(self) -> Tensor:
        return self.to(torch.int64)

    def float(self) -> Tensor:
        return self.to(torch.float32)

    def bool(self) -> Tensor:
        return self.to(torch.bool)

    # --- arithmetic

    def _both(self, other: Any) -> tuple[Tensor, Tensor]:
        """Both operands in the dtype torch would compute in."""
        number = isinstance(other, (int, float)) and not isinstance(other, bool)
        dtype = self.dtype
        if number and not dtype.is_floating_point and (isinstance(other, float) or dtype == torch.bool):
            dtype = torch.get_default_dtype() if isinstance(other, float) else torch.int64
        if isinstance(other, Tensor):
            dtype = torch.promote_types(self.dtype, other.dtype)
        return self.to(dtype), lift(self.tape, other, dtype).to(dtype)

    def binary(self, op: str, other: Any, *, swapped: bool = False, dtype: torch.dtype | None = None) -> Tensor:
        """An element-wise operator of two operands."""
        a, b = self._both(other)
        left, right = (b, a) if swapped else (a, b)
        return a.made(self.tape.op(op, left.value, right.value), joined(a.dims, b.dims), dtype)

    def __add__(self, other: Any) -> Tensor:
        return self.binary("Add", other)

    def __radd__(self, other: Any) -> Tensor:
        return self.binary("Add", other, swapped=True)

    def __sub__(self, other: Any) -> Tensor:
        return self.binary("Sub", other)

    def __rsub__(self, other: Any) -> Tensor:
        return self.binary("Sub", other, swapped=True)

    def __mul__(self, other: Any) -> Tensor:
        return self.binary("Mul", other)

    def __rmul__(self, other: Any) -> Tensor:
        return self.binary("Mul", other, swapped=True)

    def __truediv__(self, other: Any) -> Tensor:
        return self.binary("Div", other)

    def __mod__(self, other: Any) -> Tensor:
        return self.binary("Mod", other)

    def __floordiv__(self, other: Any) -> Tensor:
        return self.binary("Div", other)  # of positive integers

    def __neg__(self) -> Tensor:
        return self.op("Neg")

    def __and__(self, other: Any) -> Tensor:
        return self.binary("And", other)

    def __or__(self, other: Any) -> Tensor:
        return self.binary("Or", other)

    def __invert__(self) -> Tensor:
        return self.op("Not")

    def __le__(self, other: Any) -> Tensor:
        return self.binary("LessOrEqual", other, dtype=torch.bool)

    def __lt__(self, other: Any) -> Tensor:
        return self.binary("Less", other, dtype=torch.bool)

    def __ge__(self, other: Any) -> Tensor:
        return self.binary("GreaterOrEqual", other, dtype=torch.bool)

    def __gt__(self, other: Any) -> Tensor:
        return self.binary("Greater", other, dtype=torch.bool)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        if self.dtype == torch.bool and other == 0:
            return ~self
        return self.binary("Equal", other, dtype=torch.bool)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return ~(self == other)

    def __matmul__(self, other: Tensor) -> Tensor:
        lead = joined(self.dims[:-2], other.dims[:-2])
        return self.made(self.tape.op("MatMul", self.value, other.value), (*lead, self.dims[-2], other.dims[-1]))

    # --- element by element

    def exp(self) -> Tensor:
        return self.op("Exp")

    def abs(self) -> Tensor:
        return self.op("Abs")

    def cos(self) -> Tensor:
        return self.op("Cos")

    def sin(self) -> Tensor:
        return self.op("Sin")

    def pow(self, exponent: float) -> Tensor:
        return self.binary("Pow", exponent)

    def clamp(self, low: float | None = None, high: float | None = None, **named: float) -> Tensor:
        low, high = named.get("min", low), named.get("max", high)
        result = self
        if low is not None:
            result = result.binary("Max", low)
        return result if high is None else result.binary("Min", high)

    def masked_fill(self, where: Tensor, number: float) -> Tensor:
        fill = lift(self.tape, number, self.dtype)
        value = self.tape.op("Where", where.value, fill.value, self.value)
        return self.made(value, joined(where.dims, self.dims))

    # --- reductions

    def _reduced(self, op: str, since: int, dim: int = -1, keepdim: bool = True) -> Tensor:
        axis = dim % len(self.dims)
        wide = self.made(
            self.tape.reduce(op, self.value, axis, since=since), (*self.dims[:axis], 1, *self.dims[axis + 1 :])
        )
        if keepdim:
            return wide
        rest = (*self.dims[:axis], *self.dims[axis + 1 :])
        return self.made(self.tape.op("Squeeze", wide.value, self.tape.ints(axis)), rest)

    def sum(self, dim: int, keepdim: bool) -> Tensor:
        return self._reduced("ReduceSum", 13, dim, keepdim)

    def mean(self, dim: int, keepdim: bool = False) -> Tensor:
        return self._reduced("ReduceMean", 18, dim, keepdim)

    def amax(self, dim: int, keepdim: bool) -> Tensor:
        return self._reduced("ReduceMax", 18, dim, keepdim)

    def any(self, dim: int, keepdim: bool) -> Tensor:
        return self.long().amax(dim, keepdim).bool()

    # --- order of axes

    def permute(self, *order: int) -> Tensor:
        return self.made(self.tape.op("Transpose", self.value, perm=list(order)), [self.dims[n] for n in order])

    def transpose(self, a: int, b: int) -> Tensor:
        order = list(range(len(self.dims)))
        order[a], order[b] = order[b], order[a]
        return self.permute(*order)

    @property
    def mT(self) -> Tensor:
        return self.transpose(-1, -2)

    def contiguous(self) -> Tensor:
        return self

    # --- shapes

    def reshape(self, *sizes: int | Size) -> Tensor:
        kept = [n < len(self.dims) and key_of(self.dims[n]) == key_of(s) for n, s in enumerate(sizes)]
        free = [n for n, s in enumerate(sizes) if not isinstance(s, int) and not kept[n]]
        if self.tape.dialect.reshape == "zeros" and len(free) <= 1 and -1 not in [key_of(s) for s in sizes]:
            numbers = [0 if k else (s if isinstance(s, int) else -1) for k, s in zip(kept, sizes, strict=True)]
            shape = self.tape.ints(*numbers)
        else:
            shape = self.tape.shape(sizes)
        dims = [None if key_of(s) == -1 else s for s in sizes]
        return self.made(self.tape.op("Reshape", self.value, shape), dims)

    view = reshape

    def flatten(self, start: int) -> Tensor:
        start %= len(self.dims)
        tail = self.dims[start:]
        whole: Whole = None
        if all(isinstance(d, int) for d in tail):
            whole = int(np.prod(tail))
        if self.tape.dialect.reshape == "zeros":
            shape = self.tape.ints(*[0] * start, -1)
        else:
            shape = self.tape.shape([*(self.size_of(n) for n in range(start)), -1])
        return self.made(self.tape.op("Reshape", self.value, shape), (*self.dims[:start], whole))

    def unsqueeze(self, axis: int) -> Tensor:
        axis %= len(self.dims) + 1
        value = self.tape.op("Unsqueeze", self.value, self.tape.ints(axis))
        return self.made(value, (*self.dims[:axis], 1, *self.dims[axis:]))

    def expand(self, *sizes: int | Size) -> Tensor:
        extra = len(sizes) - len(self.dims)
        kept = [1 if key_of(s) == -1 else s for s in sizes]
        value = self.tape.op("Expand", self.value, self.tape.shape(kept))
        dims = [self.dims[n - extra] if key_of(s) == -1 else s for n, s in enumerate(sizes)]
        return self.made(value, dims)

    def split(self, sizes: Sequence[int], dim: int) -> tuple[Tensor, ...]:
        dim %= len(self.dims)
        if self.tape.dialect.pieces == "gather":
            starts = np.cumsum([0, *sizes])
            return tuple(self._slice(dim, int(a), int(b), 1) for a, b in pairwise(starts))
        values = self.tape.op("Split", self.value, self.tape.ints(*sizes), axis=dim, outputs=len(sizes))
        return tuple(
            self.made(v, (*self.dims[:dim], s, *self.dims[dim + 1 :])) for v, s in zip(values, sizes, strict=True)
        )

    def chunk(self, count: int, dim: int) -> tuple[Tensor, ...]:
        size = self.dims[dim]
        assert isinstance(size, int)
        return self.split([size // count] * count, dim)

    def unbind(self, dim: int) -> tuple[Tensor, ...]:
        count = self.dims[dim]
        assert isinstance(count, int)
        if self.tape.dialect.pieces == "gather":
            return tuple(self._take(dim, self.tape.const(np.array(n)), ()) for n in range(count))
        rest = (*self.dims[:dim], *self.dims[dim + 1 :])
        return tuple(
            self.made(self.tape.op("Squeeze", piece.value, self.tape.ints(dim)), rest)
            for piece in self.split([1] * count, dim)
        )

    def repeat_interleave(self, count: int, dim: int) -> Tensor:
        dim %= len(self.dims)
        size = self.dims[dim]
        assert isinstance(size, int)
        if self.tape.dialect.pieces == "gather":
            return self._take(dim, self.tape.const(np.repeat(np.arange(size), count)), (size * count,))
        wide = self.unsqueeze(dim + 1)
        sizes: list[int | Size] = [1] * len(wide.dims)
        sizes[dim + 1] = count
        wide = self.made(
            self.tape.op("Expand", wide.value, self.tape.shape(sizes)),
            (*self.dims[: dim + 1], count, *self.dims[dim + 1 :]),
        )
        return wide.reshape(*(size * count if n == dim else self.size_of(n) for n in range(len(self.dims))))

    # --- parts

    def _take(self, axis: int, index: ir.Value, dims: Sequence[Whole]) -> Tensor:
        value = self.tape.op("Gather", self.value, index, axis=axis)
        return self.made(value, (*self.dims[:axis], *dims, *self.dims[axis + 1 :]))

    def _slice(self, axis: int, start: Any, stop: Any, step: int) -> Tensor:
        begin, end = self.tape.vector(start), self.tape.vector(stop)
        value = self.tape.op("Slice", self.value, begin, end, self.tape.ints(axis), self.tape.ints(step))
        size = self.dims[axis]
        length: Whole = stop if isinstance(stop, Size) and isinstance(start, int) and start == 0 else None
        if isinstance(size, int) and isinstance(stop, int) and isinstance(start, int):
            length = len(range(size)[slice(start, stop, step)])
        return self.made(value, (*self.dims[:axis], length, *self.dims[axis + 1 :]))

    def __getitem__(self, key: Any) -> Tensor:
        keys = list(key) if isinstance(key, tuple) else [key]
        taken = sum(k is not None and k is not ... for k in keys)
        if any(k is ... for k in keys):
            at = next(n for n, k in enumerate(keys) if k is ...)
            keys[at : at + 1] = [_EVERYTHING] * (len(self.dims) - taken)
        result, gone = self, 0
        for place, item in enumerate(keys):
            axis = place - gone
            if item is None:
                result = result.unsqueeze(axis)
            elif isinstance(item, int):
                result, gone = result._take(axis, self.tape.const(np.array(item)), ()), gone + 1
            elif isinstance(item, Tensor):
                result = result._take(axis, item.value, item.dims)
            elif item != _EVERYTHING:
                stop = np.iinfo(np.int64).max if item.stop is None else item.stop
                result = result._slice(axis, item.start or 0, stop, item.step or 1)
        return result
