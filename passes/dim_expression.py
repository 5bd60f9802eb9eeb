"""Dimensions written as text, as algebra: read from their syntax alone, for the text comes out of files."""

from __future__ import annotations

import ast
from typing import Any, Final

from ..runtime.shapes import parsed

__all__ = ["expression_of"]

_LARGEST_POWER: Final = 8


def expression_of(text: str) -> Any:
    """A dimension as a sympy expression over whole symbols of one and more.

    Read are whole numbers, names, ``+ - * / // % **`` (small powers), ``floor``, ``ceiling``, ``Mod``, ``Max`` and
    ``Min``: what sympy and onnx-ir write. Files name dimensions as they like ("seq len", "layer-1.out_d0").

    Returns:
        None for a text that is a name and no expression.
    """
    tree = parsed(text)
    try:
        return None if tree is None else _read(tree.body)
    except (_NoExpression, ZeroDivisionError, RecursionError):
        return None


class _NoExpression(Exception):
    """Something that no dimension holds."""


def _read(node: ast.expr) -> Any:
    import sympy

    match node:
        case ast.Constant(value=bool()):
            raise _NoExpression
        case ast.Constant(value=int() as number):
            return sympy.Integer(number)
        case ast.Name(id=name):
            return sympy.Symbol(name, integer=True, positive=True)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(op, _read(left), _read(right))
        case ast.Call(func=ast.Name(id=name), args=operands, keywords=[]):
            return _applied(name, [_read(operand) for operand in operands])
    raise _NoExpression


def _combined(op: ast.operator, left: Any, right: Any) -> Any:
    import sympy

    if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and right == 0:
        raise _NoExpression
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.FloorDiv():
            return sympy.floor(left / right)
        case ast.Mod():
            return sympy.Mod(left, right)
        case ast.Pow() if right.is_Integer and 0 <= right <= _LARGEST_POWER:
            return left**right
    raise _NoExpression


def _applied(name: str, operands: list[Any]) -> Any:
    import sympy

    if name in ("floor", "ceiling") and len(operands) == 1:
        return getattr(sympy, name)(operands[0])
    if name == "Mod" and len(operands) == 2 and operands[1] != 0:
        return sympy.Mod(*operands)
    if name in ("Max", "max", "Min", "min") and operands:
        return getattr(sympy, name.capitalize())(*operands)
    raise _NoExpression
