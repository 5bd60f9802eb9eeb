"""How a loop visits its experts: each on the tokens that chose it, or on all with a weight that may be 0."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name, producer, scalar
from ..look import axes_of, past_casts
from .look import REACH, columns, comes_from, gathered, onwards, rank, rows_of, unrolled
from .routing import features

__all__ = ["Visit", "rows_given", "visits"]


@dataclass(frozen=True, slots=True)
class Visit:
    """What one expert adds.

    Attributes:
        number: Which expert it is.
        experts: (..., K), which experts each token goes to.
        weights: (..., K).
        output: What the expert gives, before it is weighted.
        index: Which tokens it is given; None for all.
        distinct: Whether it is the same only as long as no token chooses an expert twice.
    """

    number: int
    experts: ir.Value
    weights: ir.Value
    output: ir.Value
    index: ir.Value | None
    distinct: bool = False


def visits(node: ir.Node) -> tuple[list[Visit], ir.Value | None] | None:
    """What is added up at the end of a loop, last first, and what it is added to (None for zeros).

    None where the node ends no such loop.
    """
    read = _scattered if node.op_type == "ScatterND" else _added
    found, rest = list[Visit](), node.outputs[0]
    following = (read(n) for n in onwards(rest) if op_name(n) == node.op_type)
    if any(step is not None and past_casts(step[1]) is rest for step in following):
        return None  # it goes on
    while True:
        source = producer(past_casts(rest), node.op_type)
        step = None if source is None else read(source)
        if step is None:
            break
        found.append(step[0])
        rest = step[1]
    if not found:
        return None
    first = None if node.op_type == "ScatterND" else _masked(rest)
    if first is not None:
        return [*found, first], None
    return found, None if _zeros(rest) else rest


def _zeros(value: ir.Value) -> bool:
    node = producer(past_casts(value), "Expand", "ConstantOfShape")
    if node is None:
        array = constant(value, limit=1)
        return array is not None and not array.any()
    if node.op_type == "Expand":
        return scalar(node.inputs[0]) == 0
    filled = attribute(node, "value")
    return filled is None or not filled.numpy().any()


def _added(node: ir.Node) -> tuple[Visit, ir.Value] | None:
    """A weighted expert, and what it is added to."""
    if len(node.inputs) != 2:
        return None
    for rest, term in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        visit = None if term is None else _masked(term)
        if visit is not None and rest is not None:
            return visit, rest
    return None


def _masked(value: ir.Value) -> Visit | None:
    """An expert on all tokens, times the sum of the weights of those slots that chose it."""
    node = producer(past_casts(value), "Mul")
    for factor, output in (tuple(node.inputs), tuple(node.inputs)[::-1]) if node is not None else ():
        if factor is None or output is None or (dims(factor) or (0,))[-1] != 1:
            continue
        found, scattered = _chosen(factor), None
        if found is None:
            found = scattered = _column(factor)
        if found is not None:
            return Visit(found[2], found[0], found[1], past_casts(output), None, scattered is not None)
    return None


def _view(value: ir.Value) -> ir.Value:
    """The value behind views that add or take an axis of size 1."""
    value = past_casts(value)
    while (node := producer(value, "Unsqueeze", "Squeeze")) is not None and node.inputs[0] is not None:
        value = past_casts(node.inputs[0])
    return value


def _chosen(factor: ir.Value) -> tuple[ir.Value, ir.Value, int] | None:
    """(experts, weights, e) when a factor is ``sum(weights * (experts == e), -1)``."""
    total = producer(_view(factor), "ReduceSum")
    axes = () if total is None or total.inputs[0] is None else axes_of(total) or ()
    last = None if total is None or total.inputs[0] is None else rank(total.inputs[0])
    if total is None or last is None or axes not in ((-1,), (last - 1,)):
        return None
    product = producer(past_casts(total.inputs[0]), "Mul", "Where")  # type: ignore[arg-type]
    if product is None:
        return None
    if product.op_type == "Where":
        condition, kept, other = product.inputs
        picked = None if condition is None else _equal(condition)
        return (picked[0], past_casts(kept), picked[1]) if picked and kept is not None and scalar(other) == 0 else None
    for flags, weights in (tuple(product.inputs), tuple(product.inputs)[::-1]):
        picked = None if flags is None else _equal(flags)
        if picked is not None and weights is not None:
            return picked[0], past_casts(weights), picked[1]
    return None


def _equal(flags: ir.Value) -> tuple[ir.Value, int] | None:
    """(experts, e) when flags, perhaps as numbers, are ``experts == e``."""
    node = producer(flags, "Cast", "Equal")
    if node is not None and node.op_type == "Cast":
        node = producer(node.inputs[0], "Equal")
    if node is None:
        return None
    for experts, number in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        e = scalar(number)
        if e is not None and experts is not None and experts.dtype == ir.DataType.INT64:
            return experts, int(e)
    return None


def _column(factor: ir.Value) -> tuple[ir.Value, ir.Value, int] | None:
    """(experts, weights, e) when a factor is a column of weights that were scattered among zeros.

    The experts of a token must not repeat, which would leave one of two weights: TopK picks no place twice.
    """
    found = columns(factor)
    single = producer(_view(factor), "Gather")
    if single is not None and single.inputs[0] is not None and scalar(single.inputs[1]) is not None:
        axes, axis = rank(single.inputs[0]), int(attribute(single, "axis", 0))
        if axes is None or axis % axes != axes - 1:
            return None
        source, e = past_casts(single.inputs[0]), int(scalar(single.inputs[1]) or 0)
    elif found is not None and len(found[1]) == 1:
        source, e = found[0], int(found[1][0])
    else:
        return None
    node, axes = producer(source, "ScatterElements"), rank(source)
    if node is None or axes is None or int(attribute(node, "axis", 0)) % axes != axes - 1:
        return None
    data, experts, weights = node.inputs
    if data is None or experts is None or weights is None or not _zeros(data):
        return None
    once = producer(experts, "TopK") is not None and attribute(node, "reduction", "none") == "none"
    return (experts, past_casts(weights), e) if once else None


def _scattered(node: ir.Node) -> tuple[Visit, ir.Value] | None:
    """A weighted expert on the tokens that chose it, added to the rows of those tokens."""
    if attribute(node, "reduction", "none") != "add" or None in node.inputs:
        return None
    rest, _, updates = node.inputs
    index = rows_of(node)
    product = producer(past_casts(updates), "Mul")  # type: ignore[arg-type]
    hit = None if index is None else comes_from(index, lambda n: op_name(n) == "NonZero")
    chosen = None if hit is None or hit.inputs[0] is None else _selected(hit.inputs[0])
    if index is None or product is None or chosen is None or rest is None:
        return None
    for output, factor in (tuple(product.inputs), tuple(product.inputs)[::-1]):
        weights = None if factor is None else _weights_of(factor, hit)
        if output is not None and weights is not None:
            return Visit(chosen[1], chosen[0], weights, past_casts(output), index), rest
    return None


def _selected(flags: ir.Value) -> tuple[ir.Value, int] | None:
    """(experts, e) when flags are those of expert e among one-hot flags, in any order of axes, or ``experts == e``."""
    number: int | None = None
    value = flags
    for _ in range(REACH):
        direct = _equal(value)
        if direct is not None:
            return direct
        node = value.producer()
        if node is None or node.inputs[0] is None:
            return None
        name = op_name(node)
        if name == "Gather" and number is None and scalar(node.inputs[1]) is not None:
            number = int(scalar(node.inputs[1]) or 0)
        elif name == "Equal" and number is not None:
            experts = [v for v in node.inputs if v is not None and constant(v) is None]
            picked = _slots(experts[0]) if len(experts) == 1 else None
            return None if picked is None else (picked, number)
        elif name == "OneHot" and number is not None:
            picked = _slots(node.inputs[0])
            return None if picked is None else (picked, number)
        elif name not in ("Transpose", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Identity"):
            return None
        value = node.inputs[0]
    return None


def _weights_of(factor: ir.Value, hit: ir.Node | None) -> ir.Value | None:
    """(N, K) when a column holds, for each hit, the weight of the slot that was hit."""
    node = producer(_view(factor), "GatherND")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    from_hit = comes_from(node.inputs[1], lambda n: n is hit)
    return None if from_hit is None else _slots(node.inputs[0])


def _slots(value: ir.Value) -> ir.Value | None:
    """(N, K), or with other axes before the last, when the value is that with one more axis, or as it is."""
    shape = dims(value) or ()
    slots = [d for d in shape[-2:] if d != 1]
    return features(value, slots[-1]) if len(shape) in (2, 3) and slots else None


def rows_given(rows: ir.Value, visit: Visit, width: int) -> ir.Value | None:
    """x (N, H) when an expert is given the rows of x that its visit says; x itself for all."""
    if visit.index is None:
        return past_casts(rows)
    value = past_casts(rows)
    for _ in range(REACH):
        found = gathered(value)
        if found is not None:
            same = unrolled(found[1]) is visit.index
            return features(found[0], width) if same else None
        node = producer(value, "Reshape", "Squeeze", "Unsqueeze")
        if node is None or node.inputs[0] is None:
            return None
        value = past_casts(node.inputs[0])
    return None
