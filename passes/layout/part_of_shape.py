"""LAY007: a part of a shape, taken by Slice or Gather, or read from a value deep in the graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, constant, op_name, producer
from ..look import no_match, opset
from ..rule import Context, Replacement, Rule, Safety

__all__ = ["PartOfShape"]


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    start: int
    end: int
    output: ir.Value


class PartOfShape(Rule):
    """A part of a shape.

    ## What it finds
    ``Slice(Shape(x))`` and ``Gather(Shape(x))`` with constant neighbouring indices, and ``Shape(x, i, i + 1)``
    of a value inside the graph whose size carries the name of a graph input's axis.

    ## Why
    ``Shape`` has ``start`` and ``end``. Asking the graph input frees the value from being kept for its shape,
    and lets all layers share one question.

    ## Before -> After
    ``Shape, Slice`` -> ``Shape(start, end)``.

    ## When it declines
    It does not match where indices are not constant or the opset is below 15; nothing is journalled.

    ## Numerics
    EXACT: integers.

    ## References
    ONNX operator Shape-15.
    """

    code: ClassVar[str] = "LAY007"
    name: ClassVar[str] = "part-of-shape"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Slice", "Gather", "Shape"})
    emits: ClassVar[tuple[str, ...]] = ("Shape",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`PartOfShape`."""
        if opset(context) < 15:
            raise no_match("Shape has no start and end")
        if op_name(node) == "Shape":
            return _at_the_input(node, context)
        shape = producer(node.inputs[0], "Shape")
        source = None if shape is None else shape.inputs[0]
        if shape is None or source is None or source.shape is None:
            raise no_match()
        low, high = _bounds(shape, len(source.shape))
        part = _slice(node) if op_name(node) == "Slice" else _gather(node, high - low)
        if part is None:
            raise no_match()
        start, end, _ = slice(*part).indices(high - low)
        if end <= start:
            raise no_match("an empty part")
        return _Facts(source, low + start, low + end, node.outputs[0])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`PartOfShape`."""
        part = g.op(
            "Shape",
            facts.source,
            start=facts.start,
            end=facts.end,
            dtype=ir.DataType.INT64,
            shape=[facts.end - facts.start],
        )
        return Replacement(old=[facts.output], new=[part])


def _bounds(shape: ir.Node, rank: int) -> tuple[int, int]:
    low, high, _ = slice(attribute(shape, "start", 0), attribute(shape, "end")).indices(rank)
    return low, high


def _slice(node: ir.Node) -> tuple[int, int] | None:
    inputs = [*node.inputs, None, None][:5]
    starts, ends, axes, steps = (constant(v) for v in inputs[1:5])
    if starts is None or ends is None or starts.size != 1 or ends.size != 1:
        return None
    if inputs[4] is not None and (steps is None or steps.reshape(-1)[0] != 1):
        return None
    if inputs[3] is not None and (axes is None or axes.reshape(-1)[0] not in (0, -1)):
        return None
    limit = 1 << 31
    low, high = (int(np.clip(a.reshape(-1)[0], -limit, limit)) for a in (starts, ends))
    return low, high


def _gather(node: ir.Node, count: int) -> tuple[int, int] | None:
    """Neighbouring indices in order, as a vector; one index as a scalar would need a Squeeze."""
    indices = constant(node.inputs[1])
    if indices is None or indices.ndim != 1 or not indices.size or attribute(node, "axis", 0) not in (0, -1):
        return None
    wanted = [int(i) % count for i in indices]
    if wanted != list(range(wanted[0], wanted[0] + len(wanted))):
        return None
    return wanted[0], wanted[0] + len(wanted)


def _at_the_input(node: ir.Node, context: Context) -> _Facts:
    """The same size asked of the first graph input that carries its name."""
    source = node.inputs[0]
    if source is None or source.shape is None:
        raise no_match()
    low, high = _bounds(node, len(source.shape))
    dim = source.shape[low] if high - low == 1 else None
    if dim is None or isinstance(dim, int) or dim.value is None:
        raise no_match()
    for graph_input in context.model.graph.inputs:
        for axis, other in enumerate(graph_input.shape or ()):
            if isinstance(other, int) or other.value != dim.value:
                continue
            if graph_input is source and axis == low:
                raise no_match("asked there already")
            return _Facts(graph_input, axis, axis + 1, node.outputs[0])
    raise no_match()


PartOfShape.examples = (
    fires(
        "float[B,S,8] x",
        "int64[2] y",
        "n = Shape (x) y = Slice (n, zero, two)",
        emits={"Shape": 1, "Slice": 0},
        constants="int64[1] zero = {0}, int64[1] two = {2}",
    ),
    fires(
        "float[B,S,8] x",
        "int64[1] y",
        "h = Neg (x) t = Transpose <perm = [1, 0, 2]> (h) y = Shape <start = 0, end = 1> (t)",
        emits={"Shape": 1, "Transpose": 0},
    ),
    declines(
        "float[B,S,8] x",
        "int64[2] y",
        "n = Shape (x) y = Gather (n, apart)",
        because="no-match",
        constants="int64[2] apart = {0, 2}",
    ),
    declines(
        "float[B,S,8] x, int64[1] k",
        "int64[1] y",
        "n = Shape (x) y = Gather (n, k)",
        because="no-match",
    ),
)
