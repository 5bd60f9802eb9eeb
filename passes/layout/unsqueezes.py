"""LAY005: an unsqueeze of an unsqueeze, or a squeeze that undoes one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, op_name, producer
from ..look import axes_of, no_match, opset, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule, Safety
from .target import pass_through

__all__ = ["UnsqueezePair"]


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    output: ir.Value
    axes: tuple[int, ...]


class UnsqueezePair(Rule):
    """An unsqueeze followed by an unsqueeze or by the squeeze that undoes it.

    ## What it finds
    ``Unsqueeze(Unsqueeze(x, a), b)`` and ``Squeeze(Unsqueeze(x, a), a)`` with constant axes; sizes need not be
    known.

    ## Why
    Masks and rotary tables are unsqueezed one axis at a time by exporters.

    ## Before -> After
    ``Unsqueeze, Unsqueeze`` -> one ``Unsqueeze``; ``Unsqueeze, Squeeze`` -> nothing.

    ## When it declines
    * ``read-elsewhere``: the value in between has other readers.
    * ``graph-output``: the pair connects an input of the graph with an output.

    ## Numerics
    EXACT: no element is computed or moved.

    ## References
    ONNX operators Unsqueeze-13 and Squeeze-13.
    """

    code: ClassVar[str] = "LAY005"
    name: ClassVar[str] = "unsqueeze-pair"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Unsqueeze", "Squeeze"})
    emits: ClassVar[tuple[str, ...]] = ("Unsqueeze",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`UnsqueezePair`."""
        inner = producer(node.inputs[0], "Unsqueeze")
        if inner is None or inner.inputs[0] is None or opset(context) < 13:
            raise no_match()
        source, outer_axes, inner_axes = inner.inputs[0], axes_of(node), axes_of(inner)
        rank = None if source.shape is None else len(source.shape)
        if outer_axes is None or inner_axes is None or rank is None:
            raise no_match("axes or rank unknown")
        middle = rank + len(inner_axes)
        first = sorted(a % middle for a in inner_axes)
        if op_name(node) == "Squeeze":
            if sorted(a % middle for a in outer_axes) != first:
                raise no_match("other axes")
            pass_through(node.outputs[0], source)
            return _Facts(source, node.outputs[0], ())
        if not unused_elsewhere(inner.outputs[0], node):
            raise Declined("read-elsewhere", "the value in between has other readers", at=inner)
        return _Facts(source, node.outputs[0], _combined(first, outer_axes, middle))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`UnsqueezePair`."""
        if not facts.axes:
            return pass_through(facts.output, facts.source)
        axes = g.const(np.array(facts.axes, np.int64))
        wide = g.op("Unsqueeze", facts.source, axes, dtype=facts.source.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[wide])


def _combined(inner: list[int], outer: tuple[int, ...], middle: int) -> tuple[int, ...]:
    """Axes of the result that are new, from those new in the middle and those added last."""
    final = middle + len(outer)
    added = sorted(a % final for a in outer)
    kept = [axis for axis in range(final) if axis not in added]
    return tuple(sorted(added + [kept[axis] for axis in inner]))


UnsqueezePair.examples = (
    fires(
        "float[B,S] x",
        "float[B,1,1,S] y",
        "a = Unsqueeze (x, one) y = Unsqueeze (a, two)",
        emits={"Unsqueeze": 1},
        constants="int64[1] one = {1}, int64[1] two = {2}",
    ),
    fires(
        "float[2,3] x",
        "float[2,3] y",
        "h = Neg (x) a = Unsqueeze (h, last) b = Squeeze (a, two) y = Abs (b)",
        emits={"Unsqueeze": 0, "Squeeze": 0},
        constants="int64[1] last = {-1}, int64[1] two = {2}",
    ),
    declines(
        "float[B,S] x",
        "float[B,1,1,S] y, float[B,1,S] a",
        "a = Unsqueeze (x, one) y = Unsqueeze (a, two)",
        because="read-elsewhere",
        constants="int64[1] one = {1}, int64[1] two = {2}",
    ),
    declines(
        "float[B,S] x",
        "float[B,S] y",
        "a = Unsqueeze (x, one) y = Squeeze (a, one)",
        because="graph-output",
        constants="int64[1] one = {1}",
    ),
)
