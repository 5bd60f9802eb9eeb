"""How tokens reach their experts and come back: in what order, and weighted, restored, summed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name, producer, scalar
from ..look import axes_of, past_casts
from .look import REACH, column_of, computed_from, gathered, onwards, rank, rows_of, unrolled

__all__ = ["Order", "Sorted", "by_bias", "by_slot", "features", "sorted_by", "tokens", "way_back"]


@dataclass(frozen=True, slots=True)
class Order:
    """The order of rows, one row a slot.

    Attributes:
        experts: (N, K), which experts each of N tokens goes to; (N,) for K = 1.
        each: K.
        ids: (N * K,), the experts in the order of the rows; ``experts`` itself where rows are in its order.
        places: (N * K,), which slot of ``experts`` each row belongs to; None where rows are in its order.
        constants: What the ends of groups were counted with: the bounds of a histogram.
    """

    experts: ir.Value
    each: int
    ids: ir.Value
    places: ir.Value | None = None
    constants: tuple[ir.Value, ...] = ()


def by_slot(index: ir.Value) -> Order | None:
    """Rows in the order of the slots, from the experts as :func:`unrolled` returns them."""
    shape = dims(index)
    each = 1 if shape is not None and len(shape) == 1 else None if shape is None else shape[-1]
    known = isinstance(each, int) and index.dtype == ir.DataType.INT64
    return Order(index, each, index) if known and isinstance(each, int) else None


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
    slots = by_slot(unrolled(node.inputs[0]))
    ids, places = node.outputs
    return None if slots is None else Order(slots.experts, slots.each, ids, places, constants)


def tokens(rows: ir.Value, order: Order) -> ir.Value | None:
    """x (N, H) when the rows are x by slot, in this order."""
    if order.places is None:
        return _repeated(rows, order.each)
    found = gathered(rows)
    if found is None or rank(found[0]) != 2:
        return None
    return found[0] if computed_from(found[1], order.places) else None


def _repeated(rows: ir.Value, each: int) -> ir.Value | None:
    """x (N, H), or with other axes before the last, when the rows are those of x, each so many times in a row."""
    shape = [d for d in dims(rows) or () if d != 1]
    node = _behind_views(rows, "Expand")
    if node is None or node.inputs[0] is None:
        return features(rows, shape[-1]) if each == 1 and shape else None
    wide = dims(node.outputs[0])
    return features(node.inputs[0], wide[2]) if wide is not None and len(wide) == 3 and wide[1] == each else None


def _behind_views(value: ir.Value, op: str) -> ir.Node | None:
    """The node of this operator that a value is a view of."""
    for _ in range(REACH):
        node = producer(past_casts(value), op, "Reshape", "Unsqueeze", "Squeeze")
        if node is None or node.op_type == op or node.inputs[0] is None:
            return node
        value = node.inputs[0]
    return None


def features(value: ir.Value, width: int | str | None) -> ir.Value | None:
    """What a value is a view of: (N, H), or another with H numbers on its last axis; H is ``width``."""
    for _ in range(REACH):
        value = past_casts(value)
        shape = dims(value)
        if shape is not None and len(shape) == 2 and shape[1] == width:
            return value
        node = producer(value, "Reshape", "Unsqueeze", "Squeeze")
        if node is None or node.inputs[0] is None:
            return value if shape and shape[-1] == width and isinstance(width, int) else None
        value = node.inputs[0]
    return None


def by_bias(value: ir.Value, order: Order, *, restored: bool) -> ir.Value | None:
    """The table (E, F) when the value is the row of each row's expert."""
    found = gathered(value)
    if found is None or rank(found[0]) != 2 or found[0].const_value is None:
        return None
    ours = found[1] is order.experts if restored else computed_from(found[1], order.ids)
    return found[0] if ours else None


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
    way = Sorted(product, restored=order.places is None)
    for _ in range(REACH):
        following = (step(node, way, order) for node in onwards(way.output) for step in _STEPS)
        found = next((f for f in following if f is not None), None)
        if found is None or found.done:
            return found or way
        way = found
    return way


def _bias(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    if op_name(node) != "Add" or way.bias is not None or way.weights is not None or way.by_token:
        return None
    table = _other(node, way, lambda value: by_bias(value, order, restored=way.restored))
    return None if table is None else replace(way, output=node.outputs[0], bias=table)


def _weighted(node: ir.Node, way: Sorted, order: Order) -> Sorted | None:
    if op_name(node) != "Mul" or way.weights is not None:
        return None

    def weights(value: ir.Value) -> ir.Value | None:
        if way.by_token:
            return column_of(value, 3)
        if (dims(value) or ())[1:] != (1,):
            return None
        row = unrolled(value)
        if way.restored:
            return row
        found = gathered(row)
        return unrolled(found[0]) if found is not None and found[1] is order.places else None

    factor = _other(node, way, weights)
    shape = dims(factor)
    if factor is None or shape is None or shape[1:] not in ((order.each,), *([()] if order.each == 1 else [])):
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
    ours = index is not None and order.places is not None and computed_from(index, order.places)
    fits = ours and _is(node.inputs[2], way.output)
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
