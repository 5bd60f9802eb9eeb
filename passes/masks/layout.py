"""Operators that move elements: each is an index map, or it is not understood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from ..graph import attribute
from .logic import Expr, choose, non_negative, pick, substitute
from .poly import ONE, ZERO, Axis, Poly
from .slicing import axes_given, slice_
from .tensor import Memo, Tensor, elements

__all__ = ["HANDLERS"]

Inputs = Sequence[Tensor | None]


def _identity(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    return inputs[0]


def _transpose(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data = inputs[0]
    if data is None:
        return None
    order = list(attribute(node, "perm") or reversed(range(data.rank)))
    if sorted(order) != list(range(data.rank)):
        return None
    mapping = {source: Poly.atom(Axis(target)) for target, source in enumerate(order)}
    return data.at(mapping, [data.shape[source] for source in order])


def _unsqueeze(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data = inputs[0]
    given = attribute(node, "axes")
    count = len(given) if given is not None else len((len(inputs) > 1 and elements(inputs[1])) or ())
    if data is None or not count:
        return None
    rank = data.rank + count
    axes = axes_given(node, inputs, rank)
    if axes is None or len(set(axes)) != count:
        return None
    kept = [k for k in range(rank) if k not in axes]
    shape = [ONE] * rank
    for source, target in enumerate(kept):
        shape[target] = data.shape[source]
    return data.at({source: Poly.atom(Axis(target)) for source, target in enumerate(kept)}, shape)


def _squeeze(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data = inputs[0]
    if data is None:
        return None
    if len(inputs) < 2 and attribute(node, "axes") is None:
        if any(s.constant is None for s in data.shape):
            return None
        axes: list[int] | None = [k for k, s in enumerate(data.shape) if s == ONE]
    else:
        axes = axes_given(node, inputs, data.rank)
    if axes is None:
        return None
    kept = [k for k in range(data.rank) if k not in axes]
    mapping = dict.fromkeys(axes, ZERO) | {source: Poly.atom(Axis(target)) for target, source in enumerate(kept)}
    return data.at(mapping, [data.shape[k] for k in kept])


def _expand(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data, target = inputs[0], elements(inputs[1])
    declared = memo.declared(node.outputs[0])
    target = declared if target is None else target
    if data is None or target is None:
        return None
    rank = max(data.rank, len(target))
    shape = [*[ONE] * (rank - len(target)), *target]
    start = rank - data.rank
    mapping: dict[int, Poly] = {}
    for axis, size in enumerate(data.shape):
        mapping[axis] = ZERO if size == ONE else Poly.atom(Axis(axis + start))
        if size == ONE or memo.fits(size, shape[axis + start]):
            continue
        known = declared is not None and len(declared) == rank and memo.fits(size, declared[axis + start])
        if shape[axis + start] != ONE and not known:
            return None
        shape[axis + start] = size
    return data.at(mapping, shape)


def _reshape(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data = inputs[0]
    if data is None:
        return None
    shape = _target(node, data, elements(inputs[1]), memo)
    if shape is None:
        return None
    mapping = _pair_up(data, shape, memo)
    return None if mapping is None else data.at(mapping, shape)


def _target(node: ir.Node, data: Tensor, target: list[Poly] | None, memo: Memo) -> list[Poly] | None:
    """The shape a Reshape gives, -1 and 0 resolved."""
    declared = memo.declared(node.outputs[0])
    if target is None:
        return None if declared is None else list(declared)
    shape = list(target)
    for axis, size in enumerate(shape):
        if size == ZERO and not attribute(node, "allowzero", 0):
            if axis >= data.rank:
                return None
            shape[axis] = data.shape[axis]
    open_axes = [k for k, s in enumerate(shape) if s == Poly.number(-1)]
    if not open_axes:
        return shape
    known = None if declared is None or len(declared) != len(shape) else declared[open_axes[0]]
    rest = _quotient(list(data.shape), [s for k, s in enumerate(shape) if k not in open_axes], memo)
    size = rest if rest is not None else known
    if size is None:
        size = memo.fresh(node.outputs[0], len(shape))[open_axes[0]]
    shape[open_axes[0]] = size
    return shape


def _quotient(above: list[Poly], below: list[Poly], memo: Memo) -> Poly | None:
    """Product of ``above`` over product of ``below``, when every factor below cancels."""
    for factor in below:
        match = next((k for k, s in enumerate(above) if memo.same(s, factor)), None)
        if match is None and factor != ONE:
            return None
        if match is not None:
            del above[match]
    product = ONE
    for size in above:
        product = product * size
    return product


def _pair_up(data: Tensor, shape: Sequence[Poly], memo: Memo) -> dict[int, Poly] | None:
    """The index map of a Reshape: axes of size 1 come and go, the others keep their order.

    Axes that merge or split are allowed where the element does not depend on them.
    """
    old = [k for k, s in enumerate(data.shape) if s != ONE]
    new = [k for k, s in enumerate(shape) if s != ONE]
    mapping: dict[int, Poly] = dict.fromkeys(range(data.rank), ZERO)
    while old and new and memo.same(data.shape[old[0]], shape[new[0]]):
        mapping[old.pop(0)] = Poly.atom(Axis(new.pop(0)))
    while old and new and memo.same(data.shape[old[-1]], shape[new[-1]]):
        mapping[old.pop()] = Poly.atom(Axis(new.pop()))
    if len(old) == len(new) == 1:  # the one size left on either side is the same number
        memo.equate(data.shape[old[0]], shape[new[0]])
        mapping[old.pop()] = Poly.atom(Axis(new.pop()))
    return None if data.depends_on(set(old)) else mapping


def _gather(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data, index = inputs
    if data is None or index is None or index.kind != "int" or not isinstance(index.expr, Poly):
        return None
    axis = attribute(node, "axis", 0)
    if not -data.rank <= axis < data.rank:
        return None
    axis %= data.rank
    spread = {k: Poly.atom(Axis(axis + k)) for k in range(index.rank)}
    position = _position(index.expr.substitute(spread), data.shape[axis])
    if position is None:
        return None
    after = {k: Poly.atom(Axis(k + index.rank - 1)) for k in range(axis + 1, data.rank)}
    shape = [*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]]
    return data.at({axis: position} | after, shape)


def _position(index: Poly, size: Poly) -> Poly | None:
    """An index with negative numbers counted from the end; None where the sign is not proven."""
    number = index.constant
    if isinstance(number, int) and number < 0:
        return size + index
    return index if index.never_negative() else None


def _gather_nd(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data, index = inputs
    if data is None or index is None or attribute(node, "batch_dims", 0) or not index.rank:
        return None
    count = index.shape[-1].constant
    if not isinstance(count, int) or count > data.rank:
        return None
    mapping: dict[int, Poly] = {}
    for k in range(count):
        component = substitute(index.expr, {index.rank - 1: Poly.number(k)})
        position = _position(component, data.shape[k]) if isinstance(component, Poly) else None
        if position is None:
            return None
        mapping[k] = position
    lead = index.rank - 1
    mapping |= {k: Poly.atom(Axis(k - count + lead)) for k in range(count, data.rank)}
    return data.at(mapping, [*index.shape[:-1], *data.shape[count:]])


def _concat(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    parts = [t for t in inputs if t is not None]
    if len(parts) != len(inputs) or not parts or len({(t.kind, t.rank) for t in parts}) != 1 or not parts[0].rank:
        return None
    axis = attribute(node, "axis", 0) % parts[0].rank
    starts = [ZERO]
    for part in parts:
        starts.append(starts[-1] + part.shape[axis])
    here = Poly.atom(Axis(axis))
    expr: Expr = substitute(parts[-1].expr, {axis: here - starts[-2]})
    for part, start, end in reversed(list(zip(parts[:-1], starts, starts[1:], strict=False))):
        inside = non_negative((end - here).shift(-1))
        join = choose if part.kind == "bool" else pick
        expr = join(inside, substitute(part.expr, {axis: here - start}), expr)  # type: ignore[operator]
    shape = list(parts[0].shape)
    shape[axis] = starts[-1]
    return Tensor(tuple(shape), expr, parts[0].kind, parts[0].dtype)


def _tile(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data, repeats = inputs[0], elements(inputs[1])
    if data is None or repeats is None or len(repeats) != data.rank:
        return None
    shape, mapping = [], {}
    for axis, (size, repeat) in enumerate(zip(data.shape, repeats, strict=True)):
        shape.append(size * repeat)
        if repeat != ONE and size != ONE and data.depends_on({axis}):
            return None
        mapping[axis] = ZERO if size == ONE else Poly.atom(Axis(axis))
    return data.at(mapping, shape)


def _trilu(node: ir.Node, inputs: Inputs, memo: Memo) -> Tensor | None:
    data = inputs[0]
    if data is None or data.rank < 2:
        return None
    shift = elements(inputs[1]) if len(inputs) > 1 and node.inputs[1] is not None else [ZERO]
    if shift is None or len(shift) != 1:
        return None
    diagonal = Poly.atom(Axis(data.rank - 1)) - Poly.atom(Axis(data.rank - 2)) - shift[0]
    inside = non_negative(diagonal if attribute(node, "upper", 1) else -diagonal)
    expr = choose(inside, data.expr, False) if data.kind == "bool" else pick(inside, data.expr, ZERO)  # type: ignore[arg-type]
    return Tensor(data.shape, expr, data.kind, data.dtype)


HANDLERS: Final = {
    "Identity": _identity,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Expand": _expand,
    "Slice": slice_,
    "Reshape": _reshape,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Concat": _concat,
    "Tile": _tile,
    "Trilu": _trilu,
}
