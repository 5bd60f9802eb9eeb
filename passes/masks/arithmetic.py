"""Numbers and comparisons on decision trees, as the dtype computes them: unproven wherever it rounds or wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import onnx_ir as ir

from .logic import (
    Bool,
    Choice,
    Expr,
    Extreme,
    Number,
    Real,
    all_of,
    choose,
    extreme,
    map_leaves,
    non_negative,
    not_,
    zero,
)
from .measure import MAX_SIZE, size_of
from .poly import Axis, Dim, Elem, Poly, Unproven
from .tensor import Kind, Tensor, kind_of, literal

__all__ = [
    "ARITHMETIC",
    "Unproven",
    "absolute",
    "add",
    "at_least",
    "cast",
    "comparable",
    "divide",
    "equal",
    "extreme_of",
    "multiply",
    "negate",
    "rounded",
    "subtract",
]

D = ir.DataType
Leaf = Poly | Real | Extreme

#: Dtypes in which small integers neither wrap nor round.
ARITHMETIC: Final = frozenset({D.INT32, D.INT64, D.FLOAT, D.DOUBLE, D.FLOAT16, D.BFLOAT16})
_NARROW: Final = frozenset({D.FLOAT16, D.BFLOAT16})
#: Integers up to here compare in the dtype as they do in algebra.
_EXACT: Final = 1 << 52
_COMPARABLE: Final = {D.BFLOAT16: 1 << 7, D.FLOAT16: 1 << 10, D.FLOAT: 1 << 23}


def combine(left: Number, right: Number, leaf: Callable[[Leaf, Leaf], Number]) -> Number:
    if size_of(left) * size_of(right) > MAX_SIZE * 16:
        raise Unproven
    return map_leaves(left, lambda a: map_leaves(right, lambda b: leaf(a, b)))


def _test(number: Number, leaf: Callable[[Leaf], Bool]) -> Bool:
    if isinstance(number, Choice):
        return choose(number.condition, _test(number.then, leaf), _test(number.otherwise, leaf))
    return leaf(number)


def _fixed(leaf: Leaf) -> float | None:
    """The number a leaf always is, else None."""
    if isinstance(leaf, Real):
        return leaf.value
    return leaf.constant if isinstance(leaf, Poly) else None


def _fold(function: Callable[..., float], *leaves: Leaf) -> Number | None:
    numbers = [_fixed(x) for x in leaves]
    if any(n is None for n in numbers):
        return None
    with np.errstate(all="ignore"):
        result = function(*numbers)
    return literal(result if isinstance(result, int) else float(result))


def _add_leaf(left: Leaf, right: Leaf) -> Number:
    folded = _fold(lambda a, b: a + b, left, right)
    if folded is not None:
        return folded
    if isinstance(left, Poly) and isinstance(right, Poly):
        return left + right
    if isinstance(left, Poly) and isinstance(right, Extreme):
        left, right = right, left
    if isinstance(left, Extreme) and isinstance(right, Poly):
        return extreme(left.largest, left.left + right, left.right + right)
    raise Unproven


def _add_float_leaf(left: Leaf, right: Leaf) -> Number:
    """Addition that rounds: ``(m + 1) - 1`` is not m, so data may take a number once, and nothing else."""
    if not (_has_data(left) or _has_data(right)):
        return _add_leaf(left, right)
    data, other = (left, right) if _has_data(left) else (right, left)
    if _fixed(other) == 0:
        return data
    if _fixed(other) is None or not isinstance(data, Poly) or () in dict(data.terms):
        raise Unproven
    return _add_leaf(data, other)


def _has_data(leaf: Leaf) -> bool:
    return not isinstance(leaf, Real) and any(isinstance(a, Elem) for p in _sides(leaf) for a in p.atoms())


def _multiply_leaf(left: Leaf, right: Leaf) -> Number:
    folded = _fold(lambda a, b: a * b if isinstance(a * b, int) else float(np.multiply(a, b)), left, right)
    if folded is not None:
        return folded
    if isinstance(left, Poly) and isinstance(right, Poly):
        if any(isinstance(c, float) and not c.is_integer() for p in (left, right) for _, c in p.terms):
            raise Unproven  # 0.1 * m * 10 is not m
        return left * right
    if isinstance(right, Extreme):
        left, right = right, left
    factor = _fixed(right)
    if isinstance(left, Extreme) and isinstance(right, Poly) and isinstance(factor, int) and factor:
        return extreme(left.largest == (factor > 0), left.left * right, left.right * right)
    raise Unproven


def negate(number: Number) -> Number:
    """The number with its sign turned."""
    return map_leaves(number, lambda x: _multiply_leaf(x, Poly.number(-1)))


def add(left: Number, right: Number, kind: Kind) -> Number:
    """The sum; floats add as floats do, in their order."""
    return combine(left, right, _add_float_leaf if kind == "float" else _add_leaf)


def subtract(left: Number, right: Number, kind: Kind) -> Number:
    """The difference."""
    return add(left, negate(right), kind)


def multiply(left: Number, right: Number, _kind: Kind) -> Number:
    """The product."""
    return combine(left, right, _multiply_leaf)


def divide(left: Number, right: Number, _kind: Kind) -> Number:
    """The quotient; of integers only where it is exact, else Unproven is raised."""
    return combine(left, right, _divide_leaf)


def _divide_leaf(left: Leaf, right: Leaf) -> Number:
    if _fixed(right) == 1:
        return left
    top, bottom = _fixed(left), _fixed(right)
    if top is None or not bottom or (isinstance(top, int) and isinstance(bottom, int) and top % bottom):
        raise Unproven
    return literal(top // bottom if isinstance(top, int) and isinstance(bottom, int) else top / bottom)


def extreme_of(largest: bool) -> Callable[[Number, Number, Kind], Number]:
    """Makes the larger (or smaller) of two numbers."""

    def leaf(left: Leaf, right: Leaf) -> Number:
        folded = _fold(max if largest else min, left, right)
        if folded is not None and not any(isinstance(x, Real) and x.value != x.value for x in (left, right)):
            return folded
        if left == right:
            return left
        if not (isinstance(left, Poly) and isinstance(right, Poly) and (left - right).integral):
            raise Unproven
        return extreme(largest, left, right)

    return lambda left, right, _kind: combine(left, right, leaf)


def absolute(number: Number) -> Number:
    """The number without its sign."""

    def leaf(item: Leaf) -> Number:
        folded = _fold(abs, item)
        if folded is not None:
            return folded
        if not (isinstance(item, Poly) and item.integral):
            raise Unproven
        return extreme(True, item, -item)

    return map_leaves(number, leaf)


def at_least(margin: int) -> Callable[[Number, Number], Bool]:
    """``left >= right + margin``: margin 1 is ``left > right`` among integers."""

    def leaf(left: Leaf, right: Leaf) -> Bool:
        a, b = _fixed(left), _fixed(right)
        if a is not None and b is not None:
            return a > b if margin else a >= b
        difference = _add_leaf(left, _multiply_leaf(right, Poly.number(-1)))
        if not all(p.integral for p in _sides(difference)):
            raise Unproven
        return non_negative(_add_leaf(difference, Poly.number(-margin)))  # type: ignore[arg-type]

    return lambda left, right: _test(left, lambda a: _test(right, lambda b: leaf(a, b)))


def _sides(number: Number) -> tuple[Poly, ...]:
    if isinstance(number, Extreme):
        return number.left, number.right
    if isinstance(number, Poly):
        return (number,)
    raise Unproven


def equal(left: Expr, right: Expr) -> Bool:
    """Whether two expressions have the same value."""

    def leaf(a: Leaf, b: Leaf) -> Bool:
        x, y = _fixed(a), _fixed(b)
        if x is not None and y is not None:
            return x == y
        if not (isinstance(a, Poly) and isinstance(b, Poly)):
            raise Unproven
        if 0 not in (x, y) and any(() in dict(p.terms) and _has_data(p) for p in (a, b)):
            raise Unproven  # m + 1 == 1 holds for every m that is small enough
        return _is_zero(a - b)

    return _test(left, lambda a: _test(right, lambda b: leaf(a, b)))  # type: ignore[arg-type]


def comparable(tensor: Tensor) -> Number:
    """The element, where its dtype holds the integers involved exactly."""
    limit = _COMPARABLE.get(tensor.dtype) if tensor.dtype is not None else None

    def leaf(item: Leaf) -> Number:
        if limit is not None and _fixed(item) is None:
            numbers = [c for p in _sides(item) for m, c in p.terms if isinstance(c, int)]
            if any(abs(c) > limit for c in numbers):
                raise Unproven
        return item

    return map_leaves(tensor.number, leaf)


def _is_zero(poly: Poly) -> Bool:
    """``poly == 0`` where floating point decides it as algebra does: integers, or ``m + integer``."""
    single = poly.single
    exact = single is not None and abs(single[1]) == 1 and isinstance(single[2], int)
    if not (poly.integral or poly.constant is not None or exact):
        raise Unproven
    return zero(poly)


def _truth(number: Number) -> Bool:
    """What Cast to bool gives."""

    def leaf(item: Leaf) -> Bool:
        fixed = _fixed(item)
        if fixed is not None:
            return fixed != 0
        if not isinstance(item, Poly):
            raise Unproven
        if len(item.terms) == 1 and sum(isinstance(a, Elem) for a in item.terms[0][0]) > 1 and not item.integral:
            raise Unproven  # a product of small floats may underflow to 0
        if len(item.terms) == 1 and isinstance(item.terms[0][1], int):
            return all_of(not_(zero(Poly.atom(a))) for a in item.terms[0][0])
        return not_(_is_zero(item))

    return _test(number, leaf)


def rounded(number: Number, dtype: ir.DataType) -> Number:
    """Constants as the dtype holds them; an index beside numbers that make it round is unproven."""

    def leaf(item: Leaf) -> Number:
        fixed = _fixed(item)
        if fixed is not None:
            with np.errstate(all="ignore"):
                return literal(float(np.asarray(fixed).astype(dtype.numpy())))
        indices = any(isinstance(a, Axis | Dim) for p in _sides(item) for a in p.atoms())
        large = any(abs(c) > _COMPARABLE.get(dtype, _EXACT) for p in _sides(item) for _, c in p.terms)
        if indices and (large or dtype in _NARROW):
            raise Unproven
        return item

    return map_leaves(number, leaf)


def cast(source: Tensor, dtype: ir.DataType) -> Expr:
    """The tensor's expression after a Cast to ``dtype``."""
    kind = kind_of(dtype)
    if kind == "bool":
        return source.expr if source.kind == "bool" else _truth(comparable(source))
    if kind == "float" and dtype in ARITHMETIC:
        exact = source.kind != "float" or not _narrows(source.dtype, dtype)
        return rounded(source.number if exact else _only_fixed(source.number), dtype)
    if kind != "int":
        raise Unproven
    if source.kind == "bool":
        return source.number
    wide = dtype in (D.INT32, D.INT64) and source.kind == "int"
    return source.number if wide else _whole(source.number, dtype)


def _narrows(source: ir.DataType | None, target: ir.DataType) -> bool:
    order = {D.BFLOAT16: 0, D.FLOAT16: 0, D.FLOAT: 1, D.DOUBLE: 2}
    if source not in order:
        return True
    return source != target and order[source] >= order[target]


def _only_fixed(number: Number) -> Number:
    def leaf(item: Leaf) -> Number:
        if _fixed(item) is None:
            raise Unproven
        return item

    return map_leaves(number, leaf)


def _whole(number: Number, dtype: ir.DataType) -> Number:
    """Integers that fit the dtype; anything else truncates or wraps."""
    limits = np.iinfo(dtype.numpy())

    def leaf(item: Leaf) -> Number:
        fixed = _fixed(item)
        if fixed is not None and isinstance(fixed, int) and limits.min <= fixed <= limits.max:
            return item
        sides = () if isinstance(item, Real) else _sides(item)
        if dtype in (D.INT32, D.INT64) and fixed is None and sides and all(p.integral for p in sides):
            return item
        raise Unproven

    return map_leaves(number, leaf)
