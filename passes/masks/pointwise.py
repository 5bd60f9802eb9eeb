"""Element-wise operators on abstract tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from ..graph import attribute
from .arithmetic import (
    ARITHMETIC,
    Unproven,
    absolute,
    add,
    at_least,
    cast,
    comparable,
    divide,
    equal,
    extreme_of,
    multiply,
    negate,
    rounded,
    subtract,
)
from .logic import Bool, Expr, Number, all_of, any_of, choose, not_, pick
from .tensor import Kind, Memo, Tensor, broadcast, kind_of

__all__ = ["HANDLERS"]

Inputs = Sequence[Tensor | None]
Handler = Callable[[ir.Node, Inputs, Memo], Tensor | None]
D = ir.DataType


def _xor(left: Bool, right: Bool) -> Bool:
    return choose(left, not_(right), right)


def _result(node: ir.Node, inputs: Inputs, memo: Memo, dtype: ir.DataType | None, rule: Callable) -> Tensor | None:
    """Broadcast the inputs, apply ``rule`` to their elements; opaque data where that proves nothing."""
    if not inputs or any(t is None for t in inputs):
        return None
    sizes, tensors = broadcast(memo, [t for t in inputs if t is not None])
    names = memo.fresh(node.outputs[0], len(sizes))
    shape = tuple(name if size is None else size for size, name in zip(sizes, names, strict=True))
    kind = kind_of(dtype)
    if tensors is not None and kind is not None:
        try:
            return Tensor(shape, rule(*tensors), kind, dtype)
        except Unproven:
            pass
    return memo.opaque(node.outputs[0], shape, dtype)


def _arithmetic(function: Callable[[Number, Number, Kind], Number]) -> Handler:
    def handler(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
        dtype = inputs[0].dtype if inputs and inputs[0] is not None else None
        kind = kind_of(dtype)

        def rule(*tensors: Tensor) -> Number:
            if dtype not in ARITHMETIC or kind is None:
                raise Unproven
            total = tensors[0].number
            for tensor in tensors[1:]:
                total = function(total, tensor.number, kind)
            return total if kind == "int" else rounded(total, dtype)

        return _result(node, inputs, memo, dtype, rule)

    return handler


def _unary(function: Callable[[Number], Number]) -> Handler:
    def handler(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
        dtype = inputs[0].dtype if inputs and inputs[0] is not None else None

        def rule(tensor: Tensor) -> Number:
            if dtype not in ARITHMETIC:
                raise Unproven
            return function(tensor.number)

        return _result(node, inputs[:1], memo, dtype, rule)

    return handler


def _comparison(function: Callable[[Number, Number], Bool], *, swap: bool = False):
    def handler(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
        def rule(left: Tensor, right: Tensor) -> Bool:
            first, second = (right, left) if swap else (left, right)
            return function(comparable(first), comparable(second))

        return _result(node, inputs, memo, D.BOOL, rule)

    return handler


def _logic(function: Callable[..., Bool]) -> Handler:
    def handler(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
        if any(t is None or t.kind != "bool" for t in inputs):
            return None
        return _result(node, inputs, memo, D.BOOL, lambda *t: function(*(x.expr for x in t)))

    return handler


def _where(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    if len(inputs) != 3 or any(t is None for t in inputs):
        return None
    dtype = inputs[1].dtype or inputs[2].dtype  # type: ignore[union-attr]

    def rule(condition: Tensor, then: Tensor, otherwise: Tensor) -> Expr:
        if kind_of(dtype) == "bool":
            return choose(condition.expr, then.expr, otherwise.expr)  # type: ignore[arg-type]
        return pick(condition.expr, then.number, otherwise.number)  # type: ignore[arg-type]

    return _result(node, inputs, memo, dtype, rule)


def _cast_node(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    dtype = ir.DataType(attribute(node, "to", 0))
    return _result(node, inputs[:1], memo, dtype, lambda t: cast(t, dtype))


def _cast_like(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    dtype = inputs[1].dtype if len(inputs) == 2 and inputs[1] is not None else None
    return None if dtype is None else _result(node, inputs[:1], memo, dtype, lambda t: cast(t, dtype))


HANDLERS: Final = {
    "Add": _arithmetic(add),
    "Sub": _arithmetic(subtract),
    "Mul": _arithmetic(multiply),
    "Div": _arithmetic(divide),
    "Neg": _unary(negate),
    "Abs": _unary(absolute),
    "Min": _arithmetic(extreme_of(False)),
    "Max": _arithmetic(extreme_of(True)),
    "Sum": _arithmetic(add),
    "Less": _comparison(at_least(1), swap=True),
    "LessOrEqual": _comparison(at_least(0), swap=True),
    "Greater": _comparison(at_least(1)),
    "GreaterOrEqual": _comparison(at_least(0)),
    "Equal": _comparison(equal),
    "Not": _logic(not_),
    "And": _logic(lambda a, b: all_of((a, b))),
    "Or": _logic(lambda a, b: any_of((a, b))),
    "Xor": _logic(_xor),
    "Where": _where,
    "Cast": _cast_node,
    "CastLike": _cast_like,
}
