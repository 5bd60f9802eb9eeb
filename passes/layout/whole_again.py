"""LAY012: slices of one tensor put end to end again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, constant, dims, producer
from ..look import no_match
from ..rule import Context, Replacement, Rule, Safety
from .target import pass_through

__all__ = ["Part", "WholeAgain", "end_to_end", "part_of_axis"]

#: "To the end" is any larger end.
_FAR = 2**31


@dataclass(frozen=True, slots=True)
class Part:
    """A slice of one axis: ``source[start:end]``."""

    source: ir.Value
    start: int
    end: int


def part_of_axis(value: ir.Value | None, axis: int) -> Part | None:
    """The slice of one axis that a value is, with a step of 1."""
    node = producer(value, "Slice")
    if node is None or node.inputs[0] is None or len(node.inputs) < 4:
        return None
    numbers = [constant(v) for v in node.inputs[1:]]
    if any(n is None or n.size != 1 for n in numbers):
        return None
    start, end, along, *step = (int(n.reshape(-1)[0]) for n in numbers if n is not None)
    rank = len(dims(node.inputs[0]) or ())
    return Part(node.inputs[0], start, end) if rank and along % rank == axis and step in ([], [1]) else None


def end_to_end(parts: Sequence[Part], axis: int) -> bool:
    """Whether slices of one tensor, in this order, make up the whole of it."""
    whole = (dims(parts[0].source) or ())[axis]
    one = all(part.source is parts[0].source for part in parts)
    reaches = parts[-1].end >= (whole if isinstance(whole, int) else _FAR)
    return one and parts[0].start == 0 and reaches and all(a.start <= a.end == b.start for a, b in pairwise(parts))


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    output: ir.Value


class WholeAgain(Rule):
    """A concatenation of slices that are the whole tensor.

    ## What it finds
    ``Concat(x[:1], x[1:])`` along the axis of the slices. ``x[1:] += y`` ends with it: Python writes the sum into
    the slice, and then the slice into itself.

    ## Why
    It copies the tensor piece by piece, and hides what stands before it.

    ## Before -> After
    ``Slice, Slice, Concat`` -> nothing.

    ## When it declines
    ``graph-output`` where an input would have to be an output. It finds nothing unless every piece is a slice of
    the same tensor with constant bounds.

    ## Numerics
    EXACT: elements are copied.

    ## References
    ONNX operators Concat-13 and Slice-13.
    """

    code: ClassVar[str] = "LAY012"
    name: ClassVar[str] = "whole-again"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Concat"})
    emits: ClassVar[tuple[str, ...]] = ()

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`WholeAgain`."""
        shape = dims(node.outputs[0])
        if shape is None or not shape:
            raise no_match()
        axis = int(attribute(node, "axis", 0)) % len(shape)
        parts = [part for value in node.inputs if (part := part_of_axis(value, axis)) is not None]
        if not parts or len(parts) != len(node.inputs) or not end_to_end(parts, axis):
            raise no_match("not the whole of one tensor")
        pass_through(node.outputs[0], parts[0].source)
        return _Facts(parts[0].source, node.outputs[0])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`WholeAgain`."""
        return pass_through(facts.output, facts.source)


_BOUNDS = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] far = {9223372036854775807}, int64[1] ax = {1}"
_PIECES = "a = Slice (x, zero, one, ax) b = Slice (x, one, far, ax) "
WholeAgain.examples = (
    fires(
        "float[B,S] x",
        "float[B,S] y",
        "r = Relu (x) " + _PIECES.replace("(x", "(r") + "y = Concat <axis = 1> (a, b)",
        emits={"Concat": 0, "Slice": 0},
        constants=_BOUNDS,
    ),
    fires(
        "float[2,6] x",
        "float[2,6] y",
        "r = Relu (x) a = Slice (r, zero, four, ax) b = Slice (r, four, six, ax) "
        "c = Concat <axis = -1> (a, b) y = Abs (c)",
        emits={"Concat": 0, "Slice": 0},
        constants=_BOUNDS + ", int64[1] four = {4}, int64[1] six = {6}",
    ),
    declines(
        "float[B,S] x",
        "float[B,S] y",
        _PIECES + "y = Concat <axis = 1> (b, a)",
        because="no-match",
        constants=_BOUNDS,
    ),
    declines(
        "float[B,S] x",
        "float[B,S] y",
        "a = Slice (x, zero, two, ax) b = Slice (x, two, one, ax) c = Slice (x, one, far, ax) "
        "y = Concat <axis = 1> (a, b, c)",
        because="no-match",
        constants=_BOUNDS + ", int64[1] two = {2}",
    ),
    declines(
        "float[B,S] x, float[B,S] z",
        "float[B,S] y",
        _PIECES.replace("(x, one", "(z, one") + "y = Concat <axis = 1> (a, b)",
        because="no-match",
        constants=_BOUNDS,
    ),
)
