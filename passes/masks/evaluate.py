"""Walk the graph above a value and read it as an expression over its indices. Linear: every value once a memo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import onnx_ir as ir

from ..graph import constant, op_name
from . import layout, pointwise, source
from .buffers import read_constant
from .tensor import Memo, Tensor

__all__ = ["ancestors", "evaluate"]

Handler = Callable[[ir.Node, Sequence[Tensor | None], Memo], Tensor | None]
_HANDLERS: Final[dict[str, Handler]] = {**pointwise.HANDLERS, **layout.HANDLERS, **source.HANDLERS}
#: What a malformed node can make a handler raise; the value is then read as data.
_MALFORMED: Final = (ValueError, IndexError, TypeError, AttributeError, KeyError, OverflowError)


def evaluate(value: ir.Value, memo: Memo) -> Tensor | None:
    """The abstract tensor of a value, or None when not even its rank and dtype are known."""
    pending = [value]
    entered: set[int] = set()
    while pending:
        current = pending[-1]
        serial = memo.serial(current)
        if serial in memo.tensors:
            pending.pop()
            continue
        feeders = _feeders(current)
        missing = [v for v in feeders if v is not None and memo.serial(v) not in memo.tensors]
        if missing and serial not in entered:
            entered.add(serial)
            pending.extend(missing)
            continue
        pending.pop()
        inputs = [None if v is None else memo.tensors.get(memo.serial(v)) for v in feeders]
        memo.tensors[serial] = _one(current, inputs, memo)
    return memo.tensors[memo.serial(value)]


def ancestors(value: ir.Value, memo: Memo) -> list[ir.Value]:
    """The values a value was read from, nearest first, itself included."""
    found: dict[int, ir.Value] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        if memo.serial(current) not in found:
            found[memo.serial(current)] = current
            pending.extend(v for v in _feeders(current) if v is not None)
    return list(found.values())


def _handler(value: ir.Value) -> tuple[ir.Node, Handler] | None:
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return None
    found = _HANDLERS.get(op_name(node))
    return None if found is None else (node, found)


def _feeders(value: ir.Value) -> Sequence[ir.Value | None]:
    found = _handler(value)
    if found is None or value.const_value is not None:
        return ()
    node, _ = found
    if node.op_type == "Shape" and source.shape_is_declared(node):
        return (None,)
    return node.inputs


def _one(value: ir.Value, inputs: Sequence[Tensor | None], memo: Memo) -> Tensor | None:
    found = _handler(value)
    if found is None or value.const_value is not None:
        return _leaf(value, memo)
    node, handler = found
    try:
        tensor = handler(node, inputs, memo)
    except _MALFORMED:
        tensor = None
    return _settle(value, tensor, inputs, memo)


def _leaf(value: ir.Value, memo: Memo) -> Tensor | None:
    try:
        array = constant(value)
        if array is not None:
            dtype = value.dtype or ir.DataType.from_numpy(array.dtype)
            return read_constant(value, array, dtype, memo)
    except _MALFORMED:
        return None
    return memo.opaque(value)


def _settle(value: ir.Value, tensor: Tensor | None, inputs: Sequence[Tensor | None], memo: Memo) -> Tensor | None:
    """Join what was computed with what the graph declares."""
    declared = memo.declared(value)
    if tensor is None or (declared is not None and len(declared) != tensor.rank):
        return memo.opaque(value) or _of_known_rank(value, inputs, memo)
    for ours, theirs in zip(tensor.shape, declared or (), strict=False):
        memo.equate(ours, theirs)
    shape = memo.settled(tensor.shape)
    if tensor.too_large():
        return memo.opaque(value, shape, tensor.dtype)
    return Tensor(shape, tensor.expr, tensor.kind, tensor.dtype)


def _of_known_rank(value: ir.Value, inputs: Sequence[Tensor | None], memo: Memo) -> Tensor | None:
    """Data of which the graph declares no shape but the operator tells the rank."""
    node = value.producer()
    data = inputs[0] if inputs else None
    if node is None or data is None:
        return None
    rank = _rank_of(node.op_type, data, inputs[1] if len(inputs) > 1 else None)
    return None if rank is None else memo.opaque(value, memo.fresh(value, rank), value.dtype or data.dtype)


def _rank_of(op_type: str, data: Tensor, second: Tensor | None) -> int | None:
    if op_type in ("Slice", "Trilu", "CumSum", "Tile", "Transpose"):
        return data.rank
    if op_type == "Gather" and second is not None:
        return data.rank + second.rank - 1
    if op_type == "Expand" and second is not None and second.rank == 1:
        target = second.shape[0].constant
        return max(data.rank, target) if isinstance(target, int) else None
    return None
