"""Size of an expression, and the axes it depends on."""

from __future__ import annotations

from typing import Final

from .logic import AllOf, AnyOf, Choice, Expr, Extreme, Flag, NonNegative, Not, Zero
from .poly import MAX_TERMS, Poly, variables

__all__ = ["MAX_SIZE", "axes_of", "size_of"]

#: Above this many nodes an expression is read as opaque data instead.
MAX_SIZE: Final = 64


def _children(expr: Expr) -> tuple[Expr, ...]:
    if isinstance(expr, Not):
        return (expr.item,)
    if isinstance(expr, AllOf | AnyOf):
        return expr.items
    if isinstance(expr, Choice):
        return (expr.condition, expr.then, expr.otherwise)
    return ()


def _polys(expr: Expr) -> tuple[Poly, ...]:
    if isinstance(expr, NonNegative | Zero):
        return (expr.poly,)
    if isinstance(expr, Poly):
        return (expr,)
    if isinstance(expr, Extreme):
        return (expr.left, expr.right)
    return (Poly.atom(expr.elem),) if isinstance(expr, Flag) else ()


def size_of(expr: Expr) -> int:
    """Number of nodes of an expression; more than :data:`MAX_SIZE` also for an overlong polynomial."""
    if any(len(p.terms) > MAX_TERMS for p in _polys(expr)):
        return MAX_SIZE + 1
    return 1 + sum(size_of(c) for c in _children(expr))


def axes_of(expr: Expr) -> set[int]:
    """The index variables an expression depends on."""
    found: set[int] = set()
    for poly in _polys(expr):
        found |= variables(poly)
    for child in _children(expr):
        found |= axes_of(child)
    return found
