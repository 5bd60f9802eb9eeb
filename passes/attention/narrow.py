"""Computing a tensor for one head of each group, where its heads are provably repeated in runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, constant, dims, op_name, producer

__all__ = ["distinct_heads", "narrowed"]

#: Operators that treat every head alike, whatever stands on the other axes.
_UNARY = frozenset({"Neg", "Cast", "Identity", "Cos", "Sin", "Sigmoid", "Tanh"})
_BINARY = frozenset({"Add", "Sub", "Mul", "Div"})
#: Nodes between a repetition and its use; more are no head plumbing any more.
_DEPTH = 24


def distinct_heads(value: ir.Value, axis: int, *, depth: int = _DEPTH) -> int | None:
    """How many different heads stand on an axis that repeats each in a run; None when that is not evident.

    Args:
        value: The tensor.
        axis: Its head axis, not negative.
        depth: How many nodes to look through.
    """
    node, count = value.producer(), _size(value, axis)
    if node is None or count is None or depth == 0:
        return None
    source = _repeated(node, axis)
    if source is not None:
        return _size(source, axis)
    inputs = _inputs_with_heads(node, axis)
    found = {distinct_heads(v, a, depth=depth - 1) for v, a in inputs}
    if len(found) != 1:
        return None
    heads = found.pop()
    return heads if heads is not None and heads < count else None


def narrowed(value: ir.Value, axis: int, g: Builder) -> ir.Value:
    """The tensor with one head of each run, for a value of which :func:`distinct_heads` tells the count."""
    return _Narrow(g).of(value, axis)


class _Narrow:
    def __init__(self, g: Builder) -> None:
        self.g = g
        self.made: dict[int, ir.Value] = {}

    def of(self, value: ir.Value, axis: int) -> ir.Value:
        if id(value) not in self.made:
            node = value.producer()
            assert node is not None
            source = _repeated(node, axis)
            if source is None:
                self._again(node, axis)
            elif len(dims(source) or ()) == len(dims(value) or ()):
                self.made[id(value)] = source
            else:
                self.made[id(value)] = self._without(source, axis + 1)
        return self.made[id(value)]

    def _again(self, node: ir.Node, axis: int) -> None:
        """The same node over the narrow inputs."""
        narrow = {id(v): self.of(v, a) for v, a in _inputs_with_heads(node, axis)}
        inputs = [None if v is None else narrow.get(id(v), v) for v in node.inputs]
        heads = dims(next(iter(narrow.values())))
        assert heads is not None
        old = node.outputs[0]
        outputs = self.g.op(
            op_name(node),
            *inputs,
            outputs=len(node.outputs),
            dtype=old.dtype,
            version=node.version,
            **{a.name: a.value for a in node.attributes.values()},
        )
        count = next(_size(narrow[id(v)], a) for v, a in _inputs_with_heads(node, axis))
        made = (outputs,) if len(node.outputs) == 1 else outputs
        for before, after in zip(node.outputs, made, strict=True):
            assert before.shape is not None
            shape = list(before.shape)
            shape[axis] = count
            after.dtype, after.shape = before.dtype, ir.Shape(shape)
            self.made[id(before)] = after

    def _without(self, source: ir.Value, axis: int) -> ir.Value:
        """(..., heads, 1, ...) to (..., heads, ...)."""
        assert source.shape is not None
        shape = [d for i, d in enumerate(source.shape) if i != axis]
        axes = self.g.const(np.array([axis], np.int64))
        return self.g.op("Squeeze", source, axes, dtype=source.dtype, shape=shape)


def _size(value: ir.Value, axis: int) -> int | None:
    shape = dims(value)
    size = shape[axis] if shape is not None and axis < len(shape) else None
    return size if isinstance(size, int) else None


def _repeated(node: ir.Node, axis: int) -> ir.Value | None:
    """The tensor a node repeats: of the rank of the output, or with an axis of 1 behind the head axis."""
    for reader in _REPEATS:
        found = reader(node, axis)
        if found is not None:
            return found
    return None


def _merged_groups(node: ir.Node, axis: int) -> ir.Value | None:
    """Reshape of (..., heads, groups, ...) to (..., heads * groups, ...), made by Expand of (..., heads, 1, ...)."""
    if op_name(node) != "Reshape":
        return None
    expand = producer(node.inputs[0], "Expand")
    source = None if expand is None else expand.inputs[0]
    before, wide, after = dims(source), dims(node.inputs[0]), dims(node.outputs[0])
    if source is None or before is None or wide is None or after is None or len(before) != len(after) + 1:
        return None
    if axis + 1 >= len(before) or len(wide) != len(before) or before[axis + 1] != 1:
        return None
    same = [i for i in range(len(wide)) if i != axis + 1]
    if any(before[i] != wide[i] for i in same) or not _merges(wide, after, axis):
        return None
    return source


def _merges(wide: Sequence[int | str | None], after: Sequence[int | str | None], axis: int) -> bool:
    heads, groups = wide[axis], wide[axis + 1]
    if not isinstance(heads, int) or not isinstance(groups, int) or after[axis] != heads * groups:
        return False
    return list(wide[:axis]) == list(after[:axis]) and list(wide[axis + 2 :]) == list(after[axis + 1 :])


def _one_head(node: ir.Node, axis: int) -> ir.Value | None:
    """Expand of a single head, of the same rank, that widens nothing else."""
    if op_name(node) != "Expand" or node.inputs[0] is None:
        return None
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None or len(before) != len(after) or before[axis] != 1:
        return None
    return (
        node.inputs[0] if all(b == a for i, (b, a) in enumerate(zip(before, after, strict=True)) if i != axis) else None
    )


def _gathered(node: ir.Node, axis: int) -> ir.Value | None:
    """Gather with indices 0 0 1 1 ... over the head axis: repeat_interleave."""
    if op_name(node) != "Gather" or node.inputs[0] is None:
        return None
    rank = len(dims(node.inputs[0]) or ())
    if not rank or attribute(node, "axis", 0) % rank != axis:
        return None
    indices, count = constant(node.inputs[1]), _size(node.inputs[0], axis)
    if indices is None or not count or indices.ndim != 1 or indices.size % count:
        return None
    return node.inputs[0] if np.array_equal(indices, np.repeat(np.arange(count), indices.size // count)) else None


_REPEATS: tuple[Callable[[ir.Node, int], ir.Value | None], ...] = (_merged_groups, _one_head, _gathered)


def _inputs_with_heads(node: ir.Node, axis: int) -> list[tuple[ir.Value, int]]:
    """The inputs of a node that carry its head axis, each with where; empty for an operator not understood."""
    op, rank = op_name(node), len(dims(node.outputs[0]) or ())
    first = node.inputs[0] if node.inputs else None
    if first is None or not rank:
        return []
    if op in _UNARY:
        return [(first, axis)]
    if op in _BINARY:
        return _broadcast_operands(node, axis, rank)
    if op == "Transpose":
        perm = list(attribute(node, "perm", ())) or list(reversed(range(rank)))
        return [(first, perm[axis])]
    if op == "Concat" and attribute(node, "axis") % rank != axis:
        return [(v, axis) for v in node.inputs if v is not None]
    if op == "Split" and attribute(node, "axis", 0) % rank != axis:
        return [(first, axis)]
    if op == "Slice" and _leaves(node, axis, rank):
        return [(first, axis)]
    return []


def _broadcast_operands(node: ir.Node, axis: int, rank: int) -> list[tuple[ir.Value, int]]:
    found = []
    for value in node.inputs:
        shape = dims(value)
        if value is None or shape is None:
            return []
        at = axis - (rank - len(shape))
        if at >= 0 and shape[at] != 1:
            found.append((value, at))
    return found


def _leaves(node: ir.Node, axis: int, rank: int) -> bool:
    """Whether a Slice leaves an axis alone."""
    axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    return axes is not None and axis not in {int(a) % rank for a in axes.reshape(-1)}
