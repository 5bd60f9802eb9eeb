"""Symbolic dimensions: equality that is proven, and values for them in the graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from .dim_expression import expression_of
from .graph import Builder

__all__ = ["at_least", "broadcast", "dim_text", "length", "ratio", "same_dim"]


def dim_text(dim: Any) -> str:
    """A dimension for a message: the number, the symbol, or "?"."""
    if isinstance(dim, int):
        return str(dim)
    return "?" if dim is None or dim.value is None else str(dim.value)


def same_dim(left: Any, right: Any) -> bool:
    """Whether two dimensions are provably equal: the same number or the same symbolic expression."""
    if isinstance(left, int) or isinstance(right, int):
        return left == right
    if left is None or right is None or left.value is None or right.value is None:
        return False
    return left == right or _one_form(left) == _one_form(right)


def at_least(left: Any, right: Any) -> bool:
    """Whether a dimension is provably no smaller than another, whatever sizes of one and more the symbols stand for."""
    if isinstance(left, int) and isinstance(right, int):
        return left >= right
    sides = [d if isinstance(d, int) else _expression(str(d.value)) for d in (left, right) if d is not None]
    return len(sides) == 2 and None not in sides and _least(sides[0] - sides[1]) >= 0


def free_names(dim: ir.SymbolicDim) -> tuple[str, ...]:
    """The names an expression depends on, sorted; a name that is no expression ("seq len") stands for itself."""
    if dim.value is None:
        return ()
    try:
        return tuple(sorted(str(s) for s in dim.free_symbols()))
    except ValueError:
        return (str(dim.value),)


def size_of(dim: ir.SymbolicDim, bindings: Mapping[str, int]) -> int:
    """The size of a symbolic dimension when its names have these sizes."""
    if str(dim.value) in bindings:
        return bindings[str(dim.value)]
    return int(dim.evaluate(dict(bindings)))


def quotient(dim: Any, divisor: int) -> Any:
    """A dimension divided by a number that divides it; None when it has no name to say it with."""
    if isinstance(dim, int):
        return dim // divisor
    if divisor == 1:
        return dim
    try:
        return (dim // divisor).simplify() if dim is not None and dim.value is not None else None
    except ValueError:
        return None


def ratio(over: Sequence[Any], under: Sequence[Any]) -> Any:
    """The whole number of times one product of dimensions goes into another; None where that cannot be said."""
    import sympy

    sides = []
    for side in (over, under):
        known = [d if isinstance(d, int) else None if d is None else _expression(str(d.value)) for d in side]
        if None in known:
            return None
        sides.append(sympy.Mul(*known))
    if sides[1] == 0:
        return None
    found = sides[0] / sides[1]
    found = found if sides[1].is_number else sympy.cancel(found)
    if not found.as_numer_denom()[1].is_number:
        return None
    whole = sympy.floor(found)
    return int(whole) if whole.is_number else ir.SymbolicDim(str(whole))


def _one_form(dim: ir.SymbolicDim) -> Any:
    """Files name dimensions as they like ("seq len", "/layer/Add_d0"): such a name equals itself alone."""
    found = _expression(str(dim.value))
    return dim.value if found is None else found


@functools.lru_cache(maxsize=4096)
def _expression(text: str) -> Any:
    """A dimension as one sum of products, whole numbers taken out of floors; None for a name that is none."""
    import sympy

    found = expression_of(text)
    return None if found is None else sympy.expand(found.replace(sympy.floor, _without_whole))


def _without_whole(inside: Any) -> Any:
    import sympy

    rest, constants = sympy.expand(inside), 0
    constants = rest.as_coeff_Add()[0]
    whole = math.floor(constants) if constants.is_number else 0
    return sympy.floor(rest - whole) + whole


def _least(difference: Any) -> float:
    """A number that an expression is never below; minus infinity when none is seen.

    A floor that is taken away counts as what it rounds down, so that it may cancel.
    """
    import sympy

    whole = sympy.expand(difference)
    rounded = {f: f.args[0] for f in whole.atoms(sympy.floor) if whole.coeff(f).is_negative}
    whole = sympy.expand(whole.subs(rounded))
    return sum((_least_of_term(float(c), term) for term, c in whole.as_coefficients_dict().items()), 0.0)


def _least_of_term(factor: float, term: Any) -> float:
    import sympy

    if term == 1:
        return factor
    if factor < 0:
        bounded = isinstance(term, sympy.Mod) and term.args[1].is_positive and term.args[1].is_number
        return factor * float(term.args[1] - 1) if bounded else -math.inf
    return factor * math.prod(_least_of_atom(atom) for atom in sympy.Mul.make_args(term))


def _least_of_atom(atom: Any) -> float:
    import sympy

    if atom.is_Symbol:
        return 1.0
    if isinstance(atom, sympy.floor):
        low = _least(atom.args[0])
        return float(math.floor(low)) if low >= 0 else -math.inf
    return 0.0 if isinstance(atom, sympy.Mod) else 1.0 if atom.is_positive and atom.is_integer else -math.inf


def broadcast(*values: ir.Value) -> list[Any] | None:
    """The shape that values broadcast to; a dimension that cannot be told is None. None for an unknown rank."""
    if any(v.shape is None for v in values):
        return None
    shapes = [list(v.shape) for v in values if v.shape is not None]
    rank = max(len(s) for s in shapes)
    padded = [[1] * (rank - len(s)) + s for s in shapes]
    return [_joined(column) for column in zip(*padded, strict=True)]


def _joined(column: tuple[Any, ...]) -> Any:
    wide = [d for d in column if d != 1]
    if not wide:
        return 1
    return wide[0] if all(same_dim(wide[0], d) for d in wide[1:]) else None


def length(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The size of one axis as a one-element int64 tensor.

    Read from the graph input that carries the same symbol, where there is one, so that every layer asks for it
    in the same words and common-subexpression elimination leaves one node.
    """
    dim = value.shape[axis] if value.shape is not None else None
    if isinstance(dim, int):
        return g.const(np.array([dim], np.int64))
    if dim is not None and dim.value is not None:
        for graph_input in g.graph.inputs:
            for position, other in enumerate(graph_input.shape or ()):
                if not isinstance(other, int) and other.value == dim.value:
                    return _shape(g, graph_input, position)
    return _shape(g, value, axis)


def _shape(g: Builder, value: ir.Value, axis: int) -> ir.Value:
    return g.op("Shape", value, start=axis, end=axis + 1, dtype=ir.DataType.INT64, shape=[1])
