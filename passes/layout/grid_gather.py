"""LAY010: a gather whose indices are a grid over the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, dims, op_name, producer, scalar
from ..look import axes_of, no_match, past_identity
from ..rule import Context, Declined, Replacement, Rule, Safety
from ..symbols import same_dim
from .target import shape_text

__all__ = ["GridGather"]


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    axes: tuple[int, ...]
    output: ir.Value


class GridGather(Rule):
    """A gather by a grid of consecutive indices.

    ## What it finds
    ``GatherND(x, stack(arange(B) along axis 0, arange(T) along axis 3))`` where the ranges cover x whole and
    in order: ``mask[batch_index, key_index]``, as transformers builds its padding masks.

    ## Why
    The result is x with axes of size one put in. A dozen nodes build the grid on every call, and they hide
    that the mask is the model's own input.

    ## Before -> After
    ``Range, Unsqueeze, Expand, ..., Concat, GatherND`` -> ``Unsqueeze``.

    ## When it declines
    * ``not-whole``: a range is not provably as long as the axis it indexes.
    * ``order``: the ranges run along other axes than x's own, in their order.

    ## Numerics
    EXACT: elements are copied.

    ## References
    ONNX operators GatherND-13 and Unsqueeze-13.
    """

    code: ClassVar[str] = "LAY010"
    name: ClassVar[str] = "grid-gather"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"GatherND"})
    emits: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`GridGather`."""
        source, stack = node.inputs[0], producer(node.inputs[1], "Concat")
        shape = dims(node.outputs[0])
        if source is None or source.shape is None or stack is None or shape is None:
            raise no_match()
        rank, width = len(shape), len(source.shape)
        last = attribute(stack, "axis", 0) in (-1, rank)
        if attribute(node, "batch_dims", 0) or not last or len(stack.inputs) != width:
            raise no_match()
        columns = [_column(v, rank) for v in stack.inputs]
        found = [c for c in columns if c is not None]
        if len(found) != width:
            raise no_match("indices are no ranges")
        axes = [axis for axis, _ in found]
        if axes != sorted(set(axes)) or any(d != 1 for i, d in enumerate(shape) if i not in axes):
            raise Declined("order", f"ranges run along axes {axes} of {shape_text(node.outputs[0])}", at=node)
        for (_, order), dim in zip(found, source.shape, strict=True):
            assert order.shape is not None
            if not same_dim(order.shape[0], dim):
                raise Declined("not-whole", f"a range of {order.shape} indexes an axis of {dim}", at=node)
        return _Facts(source, tuple(i for i in range(rank) if i not in axes), node.outputs[0])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`GridGather`."""
        axes = g.const(np.array(facts.axes, np.int64))
        wide = g.op("Unsqueeze", facts.source, axes, dtype=facts.source.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[wide])


def _column(value: ir.Value | None, rank: int) -> tuple[int, ir.Value] | None:
    """(axis, range) when the value is a range from zero along one axis of ``rank``, behind a new last axis."""
    node = producer(value, "Unsqueeze")
    axes = None if node is None else axes_of(node)
    if node is None or node.inputs[0] is None or axes is None or len(axes) != 1 or axes[0] not in (-1, rank):
        return None
    grid = past_identity(node.inputs[0])
    expand = producer(grid, "Expand")
    if expand is not None and expand.inputs[0] is not None:
        grid = past_identity(expand.inputs[0])
    shape = dims(grid)
    order = _range_below(grid)
    if order is None or shape is None or order.shape is None or len(shape) > rank:
        return None
    long = [axis for axis, dim in enumerate(shape) if dim != 1]
    return (long[0] + rank - len(shape), order) if len(long) == 1 else None


def _range_below(value: ir.Value) -> ir.Value | None:
    """The Range that a value is, axes of size one apart."""
    while (node := value.producer()) is not None and op_name(node) == "Unsqueeze" and node.inputs[0] is not None:
        value = past_identity(node.inputs[0])
    node = producer(value, "Range")
    counts = node is not None and scalar(node.inputs[0]) == 0 and scalar(node.inputs[2]) == 1
    return value if counts else None


_GRID = (
    "bn = Shape <start = 0, end = 1> (x) bs = Squeeze (bn) b = Range (zero, bs, one) "
    "tn = Shape <start = 1, end = 2> (x) ts = Squeeze (tn) t = Range (zero, ts, one) "
)
_ENDS = "int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}"

GridGather.examples = (
    fires(
        "bool[B,T] x",
        "bool[B,1,1,T] y",
        _GRID + "bu = Unsqueeze (b, three) tu = Unsqueeze (t, front) m = Max (bu, tu) n = Shape (m) "
        "be = Expand (bu, n) te = Expand (tu, n) bi = Unsqueeze (be, last) ti = Unsqueeze (te, last) "
        "i = Concat <axis = -1> (bi, ti) y = GatherND (x, i)",
        emits={"GatherND": 0, "Unsqueeze": 1},
        constants=_ENDS + ", int64[3] three = {1, 2, 3}, int64[3] front = {0, 1, 2}",
    ),
    fires(
        "float[4] x",
        "float[4,1] y",
        "b = Range (zero, four, one) bu = Unsqueeze (b, last) bi = Unsqueeze (bu, last) "
        "i = Concat <axis = 2> (bi) y = GatherND (x, i)",
        emits={"GatherND": 0, "Unsqueeze": 1},
        constants=_ENDS + ", int64 four = {4}",
    ),
    declines(
        "bool[T,T] x",
        "bool[T,T] y",
        _GRID + "bu = Unsqueeze (b, front) tu = Unsqueeze (t, last) m = Max (bu, tu) n = Shape (m) "
        "be = Expand (bu, n) te = Expand (tu, n) bi = Unsqueeze (be, last) ti = Unsqueeze (te, last) "
        "i = Concat <axis = -1> (bi, ti) y = GatherND (x, i)",
        because="order",
        constants=_ENDS + ", int64[1] front = {0}",
    ),
    declines(
        "bool[B,T] x, bool[B,S] like",
        "bool[B,S] y",
        _GRID.replace("1, end = 2> (x)", "1, end = 2> (like)")
        + "bu = Unsqueeze (b, last) tu = Unsqueeze (t, front) m = Max (bu, tu) n = Shape (m) "
        "be = Expand (bu, n) te = Expand (tu, n) bi = Unsqueeze (be, last) ti = Unsqueeze (te, last) "
        "i = Concat <axis = -1> (bi, ti) y = GatherND (x, i)",
        because="not-whole",
        constants=_ENDS + ", int64[1] front = {0}",
    ),
)
