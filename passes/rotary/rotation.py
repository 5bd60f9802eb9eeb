"""The turned copy of a vector that rotary embedding multiplies with the sine, in its spellings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name, producer, scalar
from ..look import axes_of, consumers, past_identity
from .halves import Kind

__all__ = ["Part", "part_of", "parts_of", "rotation_of"]


@dataclass(frozen=True, slots=True)
class Part:
    """Elements start, start + step, ... below stop of the last axis of ``source``."""

    source: ir.Value
    start: int
    stop: int
    step: int


def part_of(value: ir.Value | None) -> Part | None:
    """Read a Slice or Split along the last axis, of known width."""
    value = None if value is None else past_identity(value)
    node = producer(value, "Slice", "Split", "Gather")
    source = None if node is None else node.inputs[0]
    shape = dims(source)
    if value is None or node is None or source is None or not shape or not isinstance(shape[-1], int):
        return None
    if op_name(node) == "Split":
        return _split(node, value, source, shape[-1], len(shape))
    return _slice(node, source, shape[-1], len(shape)) if op_name(node) == "Slice" else None


def _slice(node: ir.Node, source: ir.Value, width: int, rank: int) -> Part | None:
    inputs = [*node.inputs, None, None][:5]
    starts, ends, axes, steps = (constant(v) for v in inputs[1:5])
    if starts is None or ends is None or starts.size != 1 or ends.size != 1 or axes is None or axes.size != 1:
        return None
    if int(axes.reshape(-1)[0]) % rank != rank - 1 or (inputs[4] is not None and steps is None):
        return None
    step = 1 if steps is None else int(steps.reshape(-1)[0])
    far = 1 << 31
    start, stop = (int(np.clip(a.reshape(-1)[0], -far, far)) for a in (starts, ends))
    if step < 1:
        return None
    start, stop, step = slice(start, stop, step).indices(width)
    return Part(source, start, stop, step)


def _split(node: ir.Node, value: ir.Value, source: ir.Value, width: int, rank: int) -> Part | None:
    if attribute(node, "axis", 0) % rank != rank - 1:
        return None
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    count = len(node.outputs)
    if sizes is None:
        if width % count:
            return None
        sizes = np.full(count, width // count)
    index = list(node.outputs).index(value)
    start = int(sizes[:index].sum())
    return Part(source, start, start + int(sizes[index]), 1)


def rotation_of(value: ir.Value) -> tuple[ir.Value, Kind] | None:
    """x and the kind when the value is x turned by a quarter: (-second, first) of each pair."""
    value = past_identity(value)
    node = producer(value, "Concat", "Reshape")
    if node is None:
        return None
    if op_name(node) == "Concat":
        pair = _negated_pair(node)
        if pair is None or not _last_axis(node):
            return None
        second, first = part_of(pair[0]), part_of(pair[1])
        return _joined(first, second, "half")
    stack = producer(node.inputs[0], "Concat")
    pair = None if stack is None or not _last_axis(stack) else _negated_pair(stack, stacked=True)
    if pair is None:
        return None
    return _joined(part_of(pair[1]), part_of(pair[0]), "interleaved", dims(value))


def _joined(
    first: Part | None, second: Part | None, kind: Kind, shape: tuple[int | str | None, ...] | None = None
) -> tuple[ir.Value, Kind] | None:
    if first is None or second is None or past_identity(first.source) is not past_identity(second.source):
        return None
    source = first.source
    whole = dims(source)
    assert whole is not None and isinstance(whole[-1], int)
    width = whole[-1]
    if kind == "half":
        fits = (first.start, first.stop, second.start, second.stop) == (0, width // 2, width // 2, width)
        fits = fits and first.step == second.step == 1
    else:
        fits = (first.start, second.start, first.step, second.step) == (0, 1, 2, 2)
        fits = fits and first.stop >= width - 1 and second.stop >= width and shape == whole
    return (past_identity(source), kind) if fits and width % 2 == 0 else None


def _negated_pair(node: ir.Node, *, stacked: bool = False) -> tuple[ir.Value, ir.Value] | None:
    """(b, a) when the node concatenates -b and a; with ``stacked``, each behind a new last axis."""
    if len(node.inputs) != 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    left, right = (past_identity(v) for v in node.inputs if v is not None)
    if stacked:
        outer = [_behind_new_axis(left), _behind_new_axis(right)]
        if outer[0] is None or outer[1] is None:
            return None
        left, right = outer[0], outer[1]
    negated = _negated(left)
    return None if negated is None else (negated, right)


def _behind_new_axis(value: ir.Value) -> ir.Value | None:
    node = producer(value, "Unsqueeze")
    shape = dims(value)
    axes = None if node is None else axes_of(node)
    if node is None or node.inputs[0] is None or shape is None or axes is None or len(axes) != 1:
        return None
    return past_identity(node.inputs[0]) if axes[0] in (-1, len(shape) - 1) else None


def _negated(value: ir.Value) -> ir.Value | None:
    node = producer(value, "Neg", "Mul")
    if node is None or node.inputs[0] is None:
        return None
    if op_name(node) == "Neg":
        return past_identity(node.inputs[0])
    for x, minus in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        if x is not None and scalar(minus) == -1:
            return past_identity(x)
    return None


def _last_axis(node: ir.Node) -> bool:
    rank = len(dims(node.outputs[0]) or ())
    return bool(rank) and attribute(node, "axis", 0) in (-1, rank - 1)


def parts_of(value: ir.Value, tail: ir.Value) -> Iterator[ir.Node]:
    """Concats along the last axis that join ``value`` with ``tail`` behind it."""
    for node in consumers(value):
        inputs = [None if v is None else past_identity(v) for v in node.inputs]
        if op_name(node) == "Concat" and len(inputs) == 2 and inputs[0] is value and inputs[1] is tail:
            yield node
