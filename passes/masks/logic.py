"""Booleans and numbers as decision trees over polynomials: what a mask says about one place of the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .poly import ONE, ZERO, Elem, Poly

__all__ = [
    "AllOf",
    "AnyOf",
    "Bool",
    "Choice",
    "Expr",
    "Extreme",
    "Flag",
    "NonNegative",
    "Not",
    "Number",
    "Real",
    "Zero",
    "all_of",
    "any_of",
    "as_number",
    "assume",
    "assume_number",
    "choose",
    "conjuncts",
    "extreme",
    "map_leaves",
    "non_negative",
    "not_",
    "pick",
    "substitute",
    "zero",
]


@dataclass(frozen=True)
class NonNegative:
    """``poly >= 0`` over integers."""

    poly: Poly


@dataclass(frozen=True)
class Zero:
    """``poly == 0``."""

    poly: Poly


@dataclass(frozen=True)
class Flag:
    """A boolean element of a data tensor."""

    elem: Elem


@dataclass(frozen=True)
class Not:
    """Negation of a :class:`Zero`, a :class:`Flag`, an :class:`AllOf` or an :class:`AnyOf`."""

    item: Bool


@dataclass(frozen=True)
class AllOf:
    """Conjunction."""

    items: tuple[Bool, ...]


@dataclass(frozen=True)
class AnyOf:
    """Disjunction."""

    items: tuple[Bool, ...]


@dataclass(frozen=True)
class Real:
    """A float that is no finite number: -inf, inf, nan."""

    value: float


@dataclass(frozen=True)
class Choice:
    """``then`` where the condition holds, ``otherwise`` elsewhere."""

    condition: Bool
    then: Number
    otherwise: Number


@dataclass(frozen=True)
class Extreme:
    """The larger (or smaller) of two polynomials."""

    largest: bool
    left: Poly
    right: Poly


Bool = bool | NonNegative | Zero | Flag | Not | AllOf | AnyOf
Number = Poly | Real | Choice | Extreme
Expr = Bool | Number


def non_negative(number: Number) -> Bool:
    """``number >= 0`` for integer-valued numbers."""
    if isinstance(number, Choice):
        return choose(number.condition, non_negative(number.then), non_negative(number.otherwise))
    if isinstance(number, Extreme):
        join = any_of if number.largest else all_of
        return join((non_negative(number.left), non_negative(number.right)))
    if isinstance(number, Real):
        return number.value > 0
    constant = number.constant
    if constant is not None:
        return constant >= 0
    return True if number.never_negative() else NonNegative(number)


def zero(poly: Poly) -> Bool:
    """``poly == 0``, under one spelling for ``p`` and ``-p``."""
    constant = poly.constant
    if constant is not None:
        return constant == 0
    return Zero(poly if poly.terms[-1][1] > 0 else -poly)


def not_(item: Bool) -> Bool:
    """Negation, pushed down to comparisons."""
    if isinstance(item, bool):
        return not item
    if isinstance(item, Not):
        return item.item
    if isinstance(item, NonNegative):
        return non_negative((-item.poly).shift(-1))
    if isinstance(item, AllOf):
        return any_of(not_(i) for i in item.items)
    if isinstance(item, AnyOf):
        return all_of(not_(i) for i in item.items)
    return Not(item)


def all_of(items: Iterable[Bool]) -> Bool:
    """Conjunction: flat, without duplicates, False when it contradicts itself."""
    flat = _flatten(items, AllOf)
    if False in flat or any(not_(i) in flat for i in flat if isinstance(i, Not | NonNegative)):
        return False
    kept = [i for i in flat if i is not True]
    # x and (x or y) is x
    single = set(kept)
    kept = [i for i in kept if not (isinstance(i, AnyOf) and single.intersection(i.items))]
    return True if not kept else kept[0] if len(kept) == 1 else AllOf(tuple(kept))


def any_of(items: Iterable[Bool]) -> Bool:
    """Disjunction: flat, without duplicates, True when it holds an item and its negation."""
    flat = _flatten(items, AnyOf)
    if True in flat or any(not_(i) in flat for i in flat if isinstance(i, Not | NonNegative)):
        return True
    kept = [i for i in flat if i is not False]
    single = set(kept)
    kept = [i for i in kept if not (isinstance(i, AllOf) and single.intersection(i.items))]
    return False if not kept else kept[0] if len(kept) == 1 else AnyOf(tuple(kept))


def _flatten(items: Iterable[Bool], kind: type[AllOf] | type[AnyOf]) -> dict[Bool, None]:
    flat: dict[Bool, None] = {}
    for item in items:
        flat.update(dict.fromkeys(item.items if isinstance(item, kind) else (item,)))
    return flat


def choose(condition: Bool, then: Bool, otherwise: Bool) -> Bool:
    """A boolean ``Where``."""
    if isinstance(condition, bool):
        return then if condition else otherwise
    then, otherwise = assume(then, condition, True), assume(otherwise, condition, False)
    if then == otherwise:
        return then
    if isinstance(then, bool):
        return any_of((condition, otherwise)) if then else all_of((not_(condition), otherwise))
    if isinstance(otherwise, bool):
        return any_of((not_(condition), then)) if otherwise else all_of((condition, then))
    return any_of((all_of((condition, then)), all_of((not_(condition), otherwise))))


def pick(condition: Bool, then: Number, otherwise: Number) -> Number:
    """A numeric ``Where``."""
    if isinstance(condition, bool):
        return then if condition else otherwise
    then, otherwise = assume_number(then, condition, True), assume_number(otherwise, condition, False)
    return then if then == otherwise else Choice(condition, then, otherwise)


def conjuncts(item: Bool) -> tuple[Bool, ...]:
    """The items of a conjunction; one item when it is none."""
    return item.items if isinstance(item, AllOf) else (item,)


def _known(condition: Bool, holds: bool) -> dict[Bool, bool]:
    """What is known once a condition is."""
    parts = conjuncts(condition if holds else not_(condition))
    known: dict[Bool, bool] = {}
    for part in parts:
        known[part] = True
        known[not_(part)] = False
    return known


def assume(item: Bool, condition: Bool, holds: bool) -> Bool:
    """Simplify a boolean where a condition is known."""
    return _assume_bool(item, _known(condition, holds))


def assume_number(number: Number, condition: Bool, holds: bool) -> Number:
    """Simplify a number where a condition is known."""
    return _assume_number(number, _known(condition, holds))


def _assume_bool(item: Bool, known: Mapping[Bool, bool]) -> Bool:
    if isinstance(item, bool):
        return item
    if item in known:
        return known[item]
    if isinstance(item, Not):
        return not_(_assume_bool(item.item, known))
    if isinstance(item, AllOf):
        return all_of(_assume_bool(i, known) for i in item.items)
    if isinstance(item, AnyOf):
        return any_of(_assume_bool(i, known) for i in item.items)
    return item


def _assume_number(number: Number, known: Mapping[Bool, bool]) -> Number:
    if isinstance(number, Choice):
        condition = _assume_bool(number.condition, known)
        then, otherwise = _assume_number(number.then, known), _assume_number(number.otherwise, known)
        if isinstance(condition, bool):
            return then if condition else otherwise
        return then if then == otherwise else Choice(condition, then, otherwise)
    if isinstance(number, Poly) and number.constant is None and known.get(zero(number)):
        return ZERO
    return number


def substitute(expr: Expr, mapping: Mapping[int, Poly]) -> Expr:
    """Put polynomials in the place of index variables."""
    if isinstance(expr, bool | Real) or not mapping:
        return expr
    if isinstance(expr, Poly):
        return expr.substitute(mapping)
    if isinstance(expr, NonNegative):
        return non_negative(expr.poly.substitute(mapping))
    if isinstance(expr, Zero):
        return zero(expr.poly.substitute(mapping))
    if isinstance(expr, Flag):
        atom = Poly.atom(expr.elem).substitute(mapping).terms[0][0][0]
        assert isinstance(atom, Elem)
        return Flag(atom)
    if isinstance(expr, Not):
        return not_(substitute(expr.item, mapping))
    if isinstance(expr, AllOf):
        return all_of(substitute(i, mapping) for i in expr.items)
    if isinstance(expr, AnyOf):
        return any_of(substitute(i, mapping) for i in expr.items)
    if isinstance(expr, Extreme):
        return extreme(expr.largest, expr.left.substitute(mapping), expr.right.substitute(mapping))
    condition = substitute(expr.condition, mapping)
    return pick(condition, substitute(expr.then, mapping), substitute(expr.otherwise, mapping))


def extreme(largest: bool, left: Poly, right: Poly) -> Number:
    """Max or Min of two polynomials; one of them where that is proven."""
    difference = left - right if largest else right - left
    if difference.never_negative():
        return left
    if (-difference).never_negative():
        return right
    return Extreme(largest, *sorted((left, right), key=lambda p: p.key))


def map_leaves(number: Number, leaf: Callable[[Poly | Real | Extreme], Number]) -> Number:
    """Apply a function to every leaf of a decision tree."""
    if isinstance(number, Choice):
        return pick(number.condition, map_leaves(number.then, leaf), map_leaves(number.otherwise, leaf))
    return leaf(number)


def as_number(item: Bool) -> Number:
    """A boolean as 1 or 0."""
    return pick(item, ONE, ZERO)
