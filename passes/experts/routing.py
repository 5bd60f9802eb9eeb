"""How tokens reach their experts and come back: sorted by expert, gathered, weighted, restored, summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name, producer, scalar
from ..look import axes_of, past_casts
from .look import REACH, column_of, computed_from, flattened, gathered, onwards, rank, rows_of

__all__ = ["Order", "Sorted", "by_bias", "sorted_by", "tokens", "way_back"]


@dataclass(frozen=True, slots=True)
class Order:
    """Rows sorted by expert.

    Attributes:
        experts: (N, K), which experts each of N tokens goes to.
        each: K.
        ids: (N * K,), the experts in the order of the rows.
        places: (N * K,), which slot of ``experts``, flat, each row belongs to.
        constants: What the ends of groups were counted with: the bounds of a histogram.
    """

    experts: ir.Value
    each: int
    ids: ir.Value
    places: ir.Value
    constants: tuple[ir.Value, ...]


def sorted_by(ends: ir.Value) -> Order | None:
    """The order that the ends of groups were counted in; None where they were not counted over sorted rows."""
    waiting, seen, constants = [ends], set[int](), list[ir.Value]()
    order: ir.Node | None = None
    while waiting:
        value = waiting.pop(0)
        if value.const_value is not None:
            constants.append(value)
            continue
        node = value.producer()
        if node is None or node.domain or len(seen) > REACH:
            return None
        if op_name(node) == "TopK":
            if order not in (None, node):
                return None
            order = node
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.extend(v for v in node.inputs if v is not None)
    return None if order is None else _read(order, tuple(constants))


def _read(node: ir.Node, constants: tuple[ir.Value, ...]) -> Order | None:
    if attribute(node, "largest", 1) != 0 or node.inputs[0] is None:
        return None
    experts = flattened(node.inputs[0])
    each = None if experts is None else (dims(experts) or (None, None))[1]
    if experts is None or not isinstance(each, int) or experts.dtype != ir.DataType.INT64:
        return None
    return Order(experts, each, *node.outputs, constants)


def tokens(rows: ir.Value, order: Order) -> ir.Value | None:
    """x (N, H) when the rows are x by slot, in this order."""
    found = gathered(rows)
    if found is None or rank(found[0]) != 2:
        return None
    return found[0] if computed_from(found[1], order.places) else None


def by_bias(value: ir.Value, order: Order) -> ir.Value | None:
    """The table (E, F) when the value is the row of each row's expert."""
    found = gathered(value)
    if found is None or rank(found[0]) != 2 or found[0].const_value is None:
        return None
    return found[0] if computed_from(found[1], order.ids) else None


@dataclass(frozen=True, slots=True)
class Sorted:
    """What was met on the way from the second product to the result.

    Attributes:
        output: The last value on the way; (N, H) when the way is done.
        bias: (E, H), or None.
        weights: (N, K), or None as long as none were met.
        restored: Whether the rows are in the order of the slots again.
        by_token: Whether the slots of each token have an axis of their own, (N, K, H).
        done: Whether the slots of each token were added up.
    """

    output: ir.Value
    bias: ir.Value | None = None
    weights: ir.Value | None = None
    restored: bool = False
    by_token: bool = False
    done: bool = False


def way_back(product: ir.Value, order: Order) -> Sorted:
    """Follow the rows of the second product as far as they are understood."""
    way = Sorted(product)
    for _ in range(REACH):
        following = (step(node, way, order) for node in onwards(way.output) for step in _STEPS)
        found = next((f for f in following if f is not None), None)
        if found is None or found.done:
            return found or way
        way = found
    return way


def _bias(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    if op_name(node) != "Add" or way.bias is not None or way.weights is not None or way.restored:
        return None
    table = _other(node, way, lambda value: by_bias(value, order))
    return None if table is None else replace(way, output=node.outputs[0], bias=table)


def _weighted(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    if op_name(node) != "Mul" or way.weights is not None:
        return None

    def weights(value: ir.Value) -> ir.Value | None:
        if way.by_token:
            return column_of(value, 3)
        column = column_of(value, 2)
        if column is None or way.restored:
            return column and flattened(column)
        found = gathered(column)
        return flattened(found[0]) if found is not None and found[1] is order.places else None

    factor = _other(node, way, weights)
    shape = dims(factor)
    if factor is None or shape is None or len(shape) != 2 or shape[1] != order.each:
        return None
    return replace(way, output=node.outputs[0], weights=factor)


def _restored(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    if op_name(node) not in ("Gather", "GatherND") or way.restored or not _is(node.inputs[0], way.output):
        return None
    index = rows_of(node)
    return replace(way, output=node.outputs[0], restored=True) if index is not None and _undoes(index, order) else None


def _undoes(index: ir.Value, order: Order) -> bool:
    """Whether an index is where each slot's row is: the inverse of the order, scattered or sorted again."""
    node = producer(index, "ScatterND", "ScatterElements", "TopK")
    if node is None:
        return False
    if node.op_type == "TopK":
        return node.inputs[0] is order.places and attribute(node, "largest", 1) == 0 and index is node.outputs[1]
    places = rows_of(node) if node.op_type == "ScatterND" else node.inputs[1]
    return places is order.places and producer(node.inputs[2], "Range") is not None


def _by_token(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    """(N * K, H) -> (N, K, H)."""
    if op_name(node) != "Reshape" or not way.restored or way.by_token:
        return None
    shape, target = dims(node.outputs[0]), constant(node.inputs[1])
    sizes = shape if shape is not None or target is None else tuple(target.tolist())
    if sizes is None or sizes[1:-1] != (order.each,):
        return None
    return replace(way, output=node.outputs[0], by_token=True)


def _summed(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    if op_name(node) != "ReduceSum" or not way.by_token or attribute(node, "keepdims", 1):
        return None
    return replace(way, output=node.outputs[0], done=True) if axes_of(node) in ((1,), (-2,)) else None


def _scattered(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    """Rows added to those of their tokens, without an order being restored."""
    if op_name(node) != "ScatterND" or way.restored or attribute(node, "reduction", "none") != "add":
        return None
    index = rows_of(node)
    fits = _is(node.inputs[2], way.output) and index is not None and computed_from(index, order.places)
    return replace(way, output=node.outputs[0], done=True) if fits and _zeros(node.inputs[0]) else None


def _zeros(value: ir.Value | None) -> bool:
    node = producer(value, "Expand", "ConstantOfShape")
    if node is None:
        return False
    if node.op_type == "Expand":
        return scalar(node.inputs[0]) == 0
    filled = attribute(node, "value")
    return filled is None or not filled.numpy().any()


_STEPS = (_bias, _weighted, _restored, _by_token, _summed, _scattered)


def _is(value: ir.Value | None, way: ir.Value) -> bool:
    return value is not None and past_casts(value) is past_casts(way)


def _other(node: ir.Node, way: Sorted, read: Callable[[ir.Value], ir.Value | None]) -> ir.Value | None:
    """What ``read`` finds in the operand of a node that is not the one on the way."""
    for here, there in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        if there is not None and _is(here, way.output):
            found = read(there)
            if found is not None:
                return found
    return None
