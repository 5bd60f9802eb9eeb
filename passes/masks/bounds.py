"""Decide comparisons by the range of the indices: ``j >= 0`` holds, ``j < T`` holds."""

from __future__ import annotations

from collections.abc import Sequence

from .logic import AllOf, AnyOf, Bool, NonNegative, Not, all_of, any_of, not_
from .poly import ZERO, Axis, Dim, Poly

__all__ = ["bounded"]


def bounded(item: Bool, shape: Sequence[Poly]) -> Bool:
    """Simplify a boolean over ``Axis(k) < shape[k]``, all sizes at least 1."""
    if isinstance(item, NonNegative):
        if _at_least_zero(item.poly, shape):
            return True
        return False if _at_least_zero((-item.poly).shift(-1), shape) else item
    if isinstance(item, Not):
        return not_(bounded(item.item, shape))
    if isinstance(item, AllOf):
        return all_of(bounded(i, shape) for i in item.items)
    if isinstance(item, AnyOf):
        return any_of(bounded(i, shape) for i in item.items)
    return item


def _at_least_zero(poly: Poly, shape: Sequence[Poly]) -> bool:
    """Whether a polynomial is never negative for indices in range."""
    worst = ZERO
    for monomial, coefficient in poly.terms:
        term = Poly(((monomial, coefficient),))
        if len(monomial) == 1 and isinstance(monomial[0], Axis):
            last = shape[monomial[0].index].shift(-1)
            term = ZERO if coefficient > 0 else Poly.number(coefficient) * last
        worst = worst + term
    # An element exists, so every size of the shape that is a plain symbol is at least 1.
    filled = {m for s in shape for m, c in s.terms if len(s.terms) == 1 and c == 1 and len(m) == 1}
    lifted = worst
    for monomial, coefficient in worst.terms:
        if monomial in filled and isinstance(monomial[0], Dim) and coefficient > 0:
            lifted = lifted - Poly(((monomial, coefficient),)) + Poly.number(coefficient)
    return lifted.never_negative()
