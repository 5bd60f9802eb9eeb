"""Symbolic dimensions written as text: "batch", "past + sequence", "4*n"."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Final

from .errors import InputError

__all__ = ["evaluate", "parsed", "symbols_of"]

_OPERATORS: Final[dict[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: Final[dict[str, Callable[..., int]]] = {"max": max, "min": min, "Max": max, "Min": min}
_LONGEST: Final = 400


def symbols_of(dim: int | str) -> tuple[str, ...]:
    """The symbols a dimension depends on, in order of appearance. A name that is no expression is one symbol."""
    if isinstance(dim, int):
        return ()
    tree = parsed(dim)
    if tree is None:
        return (dim,)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in called]
    names.sort(key=lambda n: n.col_offset)
    return tuple(dict.fromkeys(n.id for n in names))


def evaluate(dim: int | str, sizes: Mapping[str, int]) -> int:
    """The size of a dimension for given sizes of its symbols.

    Raises:
        InputError: if a symbol has no size or the expression is not plain arithmetic.
    """
    if isinstance(dim, int):
        return dim
    if dim in sizes:
        return sizes[dim]
    tree = parsed(dim)
    try:
        if tree is None:
            raise KeyError(dim)
        return _value(tree.body, sizes)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"the dimension '{dim}' cannot be computed: {error}",
            hint=f"give it as a name or as arithmetic of {', '.join(sizes) or 'other dimensions'}",
        ) from None


def parsed(text: str) -> ast.Expression | None:
    """A dimension's text as Python would read it, nothing of it run; None for what is no expression, or too long."""
    if len(text) > _LONGEST:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, sizes)
        case ast.Call(func=ast.Name(id=name), args=args) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(a, sizes) for a in args))
    raise ValueError(f"'{ast.unparse(node)}' is not plain arithmetic")
