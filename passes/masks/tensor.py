"""An abstract tensor: its sizes, and its element as an expression over its own index variables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import onnx_ir as ir

from .logic import Expr, Flag, Number, Real, as_number, non_negative, pick, substitute
from .measure import MAX_SIZE, axes_of, size_of
from .poly import ONE, ZERO, Axis, Dim, Elem, Poly, parse_size

__all__ = ["Kind", "Memo", "Tensor", "broadcast", "elements", "from_elements", "kind_of", "literal"]

Kind = Literal["bool", "int", "float"]
Shape = tuple[Poly, ...]

#: Longest 1-D tensor (a shape, a list of axes) that is read element by element.
MAX_ELEMENTS: Final = 16


@dataclass(frozen=True)
class Tensor:
    """What is known of a value.

    Attributes:
        shape: Size per axis.
        expr: The element at ``Axis(0), Axis(1), ...``: boolean for kind "bool", else a number.
        kind: Class of the dtype.
        dtype: The dtype itself, where known.
    """

    shape: Shape
    expr: Expr
    kind: Kind
    dtype: ir.DataType | None = None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def number(self) -> Number:
        """The element as a number: booleans read as 1 and 0."""
        return as_number(self.expr) if self.kind == "bool" else self.expr  # type: ignore[arg-type,return-value]

    def at(self, mapping: Mapping[int, Poly], shape: Sequence[Poly]) -> Tensor:
        """The tensor of another shape whose element is this one's under an index map."""
        return Tensor(tuple(shape), substitute(self.expr, mapping), self.kind, self.dtype)

    def too_large(self) -> bool:
        """Whether the expression has outgrown its use."""
        return size_of(self.expr) > MAX_SIZE

    def depends_on(self, axes: set[int]) -> bool:
        """Whether the element depends on one of some axes."""
        return bool(axes_of(self.expr) & axes)


@dataclass
class Memo:
    """What was found about the values of one graph; share it among the sites of a graph that does not change.

    Sizes proven equal (declared and computed) are kept as one class.

    Attributes:
        tensors: What was found, by the serial of the value.
        values: The values that have a serial.
        clamps: Names of sizes that are ``min(size, n)`` for a number n >= 2, to that size: a stored buffer of
            n rows cut to ``[:size]``.
    """

    tensors: dict[int, Tensor | None] = field(default_factory=dict)
    values: list[ir.Value] = field(default_factory=list)
    clamps: dict[Poly, Poly] = field(default_factory=dict)
    _parents: dict[Poly, Poly] = field(default_factory=dict)
    _serials: dict[int, int] = field(default_factory=dict)

    def serial(self, value: ir.Value) -> int:
        """A small number that stands for a value."""
        if id(value) not in self._serials:
            self.values.append(value)  # keeps the value alive, so that its id stays its own
            self._serials[id(value)] = len(self._serials)
        return self._serials[id(value)]

    def same(self, left: Poly | None, right: Poly | None) -> bool:
        """Whether two sizes are proven equal."""
        return left is not None and right is not None and self._root(left) == self._root(right)

    def fits(self, left: Poly, right: Poly | None) -> bool:
        """Whether two sizes of one broadcast axis are equal in every run that does not fail.

        A clamped size ``min(s, n)`` with n >= 2 that meets s is s: else it is n, neither s nor 1, and the
        broadcast is an error.
        """
        if right is None:
            return False
        return self.same(self.clamps.get(left, left), self.clamps.get(right, right))

    def equate(self, left: Poly, right: Poly) -> None:
        """Record that two sizes are equal."""
        a, b = self._root(left), self._root(right)
        if a != b and (a.constant is None or b.constant is None):
            low, high = (b, a) if a.constant is None else (a, b)
            self._parents[high] = low

    def settled(self, shape: Sequence[Poly]) -> Shape:
        """A shape with every size that is proven to be a number written as that number."""
        roots = [self._root(s) for s in shape]
        return tuple(s if r.constant is None else r for s, r in zip(shape, roots, strict=True))

    def _root(self, size: Poly) -> Poly:
        while size in self._parents:
            size = self._parents[size]
        return size

    def declared(self, value: ir.Value) -> Shape | None:
        """The declared shape, with a name for every unknown size; None when the rank is unknown."""
        if value.shape is None:
            return None
        sizes = [parse_size(d) for d in value.shape]
        return tuple(self._unnamed(value, k) if s is None else s for k, s in enumerate(sizes))

    def fresh(self, value: ir.Value, rank: int) -> Shape:
        """Names for the sizes of a value of which only the rank is known."""
        return tuple(self._unnamed(value, k) for k in range(rank))

    def _unnamed(self, value: ir.Value, axis: int) -> Poly:
        return Poly.atom(Dim(f"?{self.serial(value)}.{axis}"))

    def opaque(self, value: ir.Value, shape: Shape | None = None, dtype: ir.DataType | None = None) -> Tensor | None:
        """A value as data: its element is itself. None when its rank or dtype class is unknown."""
        shape = self.declared(value) if shape is None else shape
        dtype = value.dtype if dtype is None else dtype
        kind = kind_of(dtype)
        if shape is None or kind is None:
            return None
        indices = tuple(ZERO if s == ONE else Poly.atom(Axis(k)) for k, s in enumerate(shape))
        elem = Elem(self.serial(value), kind, indices, value)
        return Tensor(shape, Flag(elem) if kind == "bool" else Poly.atom(elem), kind, dtype)


def kind_of(dtype: ir.DataType | None) -> Kind | None:
    """The class of a dtype; None for strings, complex numbers and the unknown."""
    if dtype is None:
        return None
    if dtype == ir.DataType.BOOL:
        return "bool"
    if dtype.is_integer():
        return "int"
    return "float" if dtype.is_floating_point() else None


def literal(item: bool | int | float) -> Number:
    """A number as a leaf."""
    number = int(item) if isinstance(item, int) else float(item)
    return Poly.number(number) if math.isfinite(number) else Real(number)


def broadcast(memo: Memo, tensors: Sequence[Tensor]) -> tuple[list[Poly | None], list[Tensor] | None]:
    """Bring tensors to one shape by numpy's rule.

    Returns:
        The size per axis, None where one of two sizes could be 1 or not; and the tensors in that shape, None
        where there is such an axis: then nothing is proven of the elements.
    """
    rank = max((t.rank for t in tensors), default=0)
    shape: list[Poly | None] = [ONE] * rank
    for tensor in tensors:
        for axis, size in enumerate(tensor.shape, rank - tensor.rank):
            known = shape[axis]
            if known == ONE:
                shape[axis] = size
            elif known is not None and size != ONE:
                kept = size if known in memo.clamps else known
                shape[axis] = kept if memo.fits(size, known) else None
    known = [s for s in shape if s is not None]
    return shape, [_spread(t, known) for t in tensors] if len(known) == rank else None


def _spread(tensor: Tensor, shape: Sequence[Poly]) -> Tensor:
    start = len(shape) - tensor.rank
    mapping = {k: ZERO if s == ONE else Poly.atom(Axis(k + start)) for k, s in enumerate(tensor.shape)}
    return tensor.at(mapping, shape)


def from_elements(items: Sequence[Number], kind: Kind, dtype: ir.DataType | None = None) -> Tensor:
    """A 1-D tensor from its elements."""
    expr = items[-1] if items else ZERO
    for index in range(len(items) - 2, -1, -1):
        inside = non_negative(Poly.number(index) - Poly.atom(Axis(0)))
        expr = pick(inside, items[index], expr)
    return Tensor((Poly.number(len(items)),), expr, kind, dtype)


def elements(tensor: Tensor | None) -> list[Poly] | None:
    """The elements of a short integer tensor (rank 0 or 1), when each is one polynomial."""
    if tensor is None or tensor.kind != "int" or tensor.rank > 1:
        return None
    count = tensor.shape[0].constant if tensor.rank else 1
    if not isinstance(count, int) or count > MAX_ELEMENTS:
        return None
    items = [substitute(tensor.expr, {0: Poly.number(k)}) for k in range(count)]
    return items if all(isinstance(i, Poly) for i in items) else None  # type: ignore[return-value]
