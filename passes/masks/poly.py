"""Integer polynomials over sizes, index variables and tensor elements: the leaves of the mask algebra.

A polynomial is kept in one normal form (sorted monomials, no zero coefficient), so equal meaning mostly is equal
structure, and a proof of equality is ``==``.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import onnx_ir as ir

__all__ = ["ONE", "ZERO", "Atom", "Axis", "Dim", "Elem", "Poly", "Unproven", "parse_size", "variables"]

#: Above this many terms a polynomial is no index any more; the value is read as opaque data instead.
MAX_TERMS: Final = 12
#: Products of terms beyond which multiplying two sums out would take longer than it is worth.
_MOST_PRODUCTS: Final = 1 << 12
#: Floats beyond this magnitude are not all integers of their own, so they stay floats.
_EXACT: Final = float(1 << 53)
_OPERATORS: Final = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@dataclass(frozen=True, slots=True)
class Dim:
    """A symbolic size, at least 0."""

    name: str

    def key(self) -> tuple[object, ...]:
        """Order among atoms."""
        return (0, self.name)


@dataclass(frozen=True, slots=True)
class Axis:
    """The index along one axis of the tensor the expression describes, at least 0."""

    index: int

    def key(self) -> tuple[object, ...]:
        """Order among atoms."""
        return (1, self.index)


@dataclass(frozen=True)
class Elem:
    """One element of a tensor whose content is data: ``value[indices]``.

    Attributes:
        serial: Number of the value in its analysis: identity and order.
        kind: "bool", "int" or "float".
        indices: Index per axis of the value.
        value: The graph value itself.
    """

    serial: int
    kind: str
    indices: tuple[Poly, ...]
    value: ir.Value = field(compare=False, repr=False)

    def key(self) -> tuple[object, ...]:
        """Order among atoms."""
        return (2, self.serial, tuple(i.key for i in self.indices))


class Unproven(Exception):
    """The element is no expression of this algebra: the result is read as data."""


Atom = Dim | Axis | Elem
Monomial = tuple[Atom, ...]


def _monomial_key(monomial: Monomial) -> tuple[object, ...]:
    return (len(monomial), tuple(a.key() for a in monomial))


@dataclass(frozen=True)
class Poly:
    """A sum of coefficient times monomial. Coefficients are int, or finite float in scaled masks."""

    terms: tuple[tuple[Monomial, int | float], ...] = ()

    @staticmethod
    def of(terms: Mapping[Monomial, int | float]) -> Poly:
        """Build the normal form of a sum."""
        kept = [(m, _tidy(c)) for m, c in terms.items() if c != 0]
        return Poly(tuple(sorted(kept, key=lambda t: _monomial_key(t[0]))))

    @staticmethod
    def atom(atom: Atom) -> Poly:
        """The polynomial of one atom."""
        return Poly((((atom,), 1),))

    @staticmethod
    def number(value: int | float) -> Poly:
        """A constant."""
        return Poly.of({(): value})

    @cached_property
    def key(self) -> tuple[object, ...]:
        """Order among polynomials, stable from run to run."""
        return tuple((_monomial_key(m), float(c)) for m, c in self.terms)

    @property
    def constant(self) -> int | float | None:
        """The number, when there is nothing else."""
        if not self.terms:
            return 0
        monomial, coefficient = self.terms[0]
        return coefficient if not monomial and len(self.terms) == 1 else None

    @property
    def integral(self) -> bool:
        """Whether every value it can take is an integer, computed without rounding."""
        return all(isinstance(c, int) and all(_integer(a) for a in m) for m, c in self.terms)

    @property
    def single(self) -> tuple[Atom, int | float, int | float] | None:
        """``(atom, a, c)`` of ``a * atom + c``, else None."""
        linear = [(m, c) for m, c in self.terms if m]
        if len(linear) != 1 or len(linear[0][0]) != 1:
            return None
        rest = self.terms[0][1] if not self.terms[0][0] else 0
        return linear[0][0][0], linear[0][1], rest

    def atoms(self) -> set[Atom]:
        """Every atom of every monomial, not those inside the indices of elements."""
        return {a for m, _ in self.terms for a in m}

    def never_negative(self) -> bool:
        """Whether it is at least 0 for all sizes and indices. False means: not proven."""
        return all(c > 0 and not any(isinstance(a, Elem) for a in m) for m, c in self.terms)

    def __add__(self, other: Poly) -> Poly:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms:
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return Poly.of(terms)

    def __neg__(self) -> Poly:
        return Poly(tuple((m, -c) for m, c in self.terms))

    def __sub__(self, other: Poly) -> Poly:
        return self + -other

    def __mul__(self, other: Poly) -> Poly:
        if len(self.terms) * len(other.terms) > _MOST_PRODUCTS:
            raise Unproven("a product of sums with too many terms")
        terms: dict[Monomial, int | float] = {}
        for left, a in self.terms:
            for right, b in other.terms:
                monomial = tuple(sorted((*left, *right), key=lambda x: x.key()))
                terms[monomial] = terms.get(monomial, 0) + a * b
        return Poly.of(terms)

    def substitute(self, mapping: Mapping[int, Poly]) -> Poly:
        """Put polynomials in the place of index variables, also inside the indices of elements."""
        if not mapping or not any(_has_axis(a) for a in self.atoms()):
            return self
        total = ZERO
        for monomial, coefficient in self.terms:
            product = Poly.number(coefficient)
            for atom in monomial:
                product = product * _replace(atom, mapping)
            total = total + product
        return total

    def shift(self, amount: int | float) -> Poly:
        """Add a number."""
        return self + Poly.number(amount)

    def __str__(self) -> str:
        if not self.terms:
            return "0"
        return " + ".join(_term_text(m, c) for m, c in reversed(self.terms)).replace("+ -", "- ")


def _tidy(coefficient: int | float) -> int | float:
    if isinstance(coefficient, float) and coefficient.is_integer() and abs(coefficient) < _EXACT:
        return int(coefficient)
    return coefficient


ZERO: Final = Poly()
ONE: Final = Poly.number(1)


def _integer(atom: Atom) -> bool:
    return not isinstance(atom, Elem) or atom.kind == "int"


def _has_axis(atom: Atom) -> bool:
    return not isinstance(atom, Dim)


def _replace(atom: Atom, mapping: Mapping[int, Poly]) -> Poly:
    if isinstance(atom, Axis):
        return mapping.get(atom.index, Poly.atom(atom))
    if isinstance(atom, Elem):
        indices = tuple(i.substitute(mapping) for i in atom.indices)
        return Poly.atom(Elem(atom.serial, atom.kind, indices, atom.value))
    return Poly.atom(atom)


def _term_text(monomial: Monomial, coefficient: int | float) -> str:
    names = "*".join(a.name if isinstance(a, Dim) else str(a) for a in monomial)
    if not names:
        return str(coefficient)
    return names if coefficient == 1 else f"-{names}" if coefficient == -1 else f"{coefficient}*{names}"


def variables(poly: Poly) -> set[int]:
    """The axes a polynomial depends on, also through the indices of elements."""
    found: set[int] = set()
    for atom in poly.atoms():
        if isinstance(atom, Axis):
            found.add(atom.index)
        elif isinstance(atom, Elem):
            for index in atom.indices:
                found |= variables(index)
    return found


def parse_size(dim: int | ir.SymbolicDim | str | None) -> Poly | None:
    """A size as a polynomial: 4, "batch", "past + sequence", "2*s0". None when it is unknown."""
    if isinstance(dim, int):
        return Poly.number(dim)
    text = dim.value if isinstance(dim, ir.SymbolicDim) else dim
    if text is None:
        return None
    try:
        return _parse(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        return Poly.atom(Dim("".join(text.split())))


def _parse(node: ast.expr) -> Poly:
    if isinstance(node, ast.Name):
        return Poly.atom(Dim(node.id))
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return Poly.number(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_parse(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_parse(node.left), _parse(node.right))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
        return _exact_quotient(_parse(node.left), _parse(node.right))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and node.right.__class__ is ast.Constant:
        return _power(_parse(node.left), ast.literal_eval(node.right))
    # A part such as "min(a, -b)" might be negative while the whole, being a size, is not: keep it whole.
    raise ValueError(ast.unparse(node))


def _power(base: Poly, exponent: object) -> Poly:
    if exponent not in (1, 2, 3, 4):
        raise ValueError(exponent)
    result = base
    for _ in range(int(exponent) - 1):  # type: ignore[call-overload]
        result = result * base
    return result


def _exact_quotient(above: Poly, below: Poly) -> Poly:
    """``above // below`` for one positive monomial that divides every term; sizes of 0 do not divide anything."""
    if len(below.terms) != 1 or below.terms[0][1] <= 0:
        raise ValueError(below)
    divisor, factor = below.terms[0]
    terms: dict[Monomial, int | float] = {}
    for monomial, coefficient in above.terms:
        rest = list(monomial)
        for atom in divisor:
            rest.remove(atom)  # ValueError: it does not divide
        if coefficient % factor:
            raise ValueError(coefficient)
        terms[tuple(rest)] = coefficient // factor
    return Poly.of(terms)
