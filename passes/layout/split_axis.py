"""LAY011: a transpose between the splitting or merging of an axis and the rest of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, constant, producer
from ..look import no_match, sole_reader
from ..rule import Context, Declined, Replacement, Rule, Safety
from ..symbols import same_dim
from .target import emit_reshape, reshape_target, shape_text

__all__ = ["SplitAxis"]


@dataclass(frozen=True, slots=True)
class _Facts:
    """``first`` says whether the reshape stood before the transpose (and now follows it)."""

    source: ir.Value
    output: ir.Value
    perm: tuple[int, ...]
    target: tuple[int, ...]
    middle: tuple[Any, ...]
    first: bool


class SplitAxis(Rule):
    """A reshape that splits one axis in two, or merges two, on the wrong side of a transpose.

    ## What it finds
    ``Reshape(Transpose(x))`` that splits one axis, and ``Transpose(Reshape(x))`` whose reshape merged two adjacent
    ones: to a computed shape, or where another reshape or transpose waits on the other side, and constants say
    the shape there. Attention over (batch * heads, length, size) tensors between time-first ones, say.

    ## Why
    The reshapes meet those of the model, the transposes those of the attention, and both vanish, with the nodes
    that compute the target shape.

    ## Before -> After
    ``Reshape(Transpose(x))`` -> ``Transpose(Reshape(x))``; ``Transpose(Reshape(x))`` -> ``Reshape(Transpose(x))``

    ## When it declines
    * ``read-elsewhere``: the tensor in between has other readers.
    * ``shape-not-proven``: the target on the other side takes more than constants and one -1.

    ## Numerics
    EXACT: elements are moved, not computed.

    ## References
    ONNX operators Transpose-13 and Reshape-14.
    """

    code: ClassVar[str] = "LAY011"
    name: ClassVar[str] = "split-axis"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Reshape", "Transpose"})
    emits: ClassVar[tuple[str, ...]] = ("Reshape", "Transpose")

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`SplitAxis`."""
        split = node.op_type == "Reshape"
        other = producer(node.inputs[0], "Transpose" if split else "Reshape")
        source = None if other is None else other.inputs[0]
        if other is None or source is None:
            raise no_match()
        computed = constant((node if split else other).inputs[1]) is None
        if not computed and not _meets(split, source, node):
            raise no_match("nothing to meet on the other side")
        before, between, after = source.shape, other.outputs[0].shape, node.outputs[0].shape
        perm = attribute(other if split else node, "perm")
        if before is None or between is None or after is None or perm is None:
            raise no_match("ranks unknown")
        wide, narrow = (list(after), list(between)) if split else (list(before), list(between))
        axis = _split_axis(narrow, wide)
        if axis is None:
            raise no_match("no axis is split or merged")
        if not _read_here(other.outputs[0], node):
            raise Declined("read-elsewhere", "the value in between has other readers", at=other)
        return _moved_split(source, node, list(perm), axis) if split else _moved_merge(source, node, list(perm), axis)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`SplitAxis`."""
        dtype, perm = facts.source.dtype, list(facts.perm)
        if facts.first:
            turned = g.op("Transpose", facts.source, perm=perm, dtype=dtype, shape=list(facts.middle))
            return Replacement(old=[facts.output], new=[emit_reshape(g, turned, facts.output, list(facts.target))])
        like = ir.Value(name="middle", type=facts.source.type, shape=ir.Shape(facts.middle))
        made = emit_reshape(g, facts.source, like, list(facts.target))
        moved = g.op("Transpose", made, perm=perm, dtype=dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[moved])


def _meets(split: bool, source: ir.Value, node: ir.Node) -> bool:
    """Whether, once moved, the reshape meets another reshape, or the transpose another transpose."""
    above, below = ("Reshape", "Transpose") if split else ("Transpose", "Reshape")
    upper = producer(source, above)
    return (upper is not None and len(source.uses()) == 1) or sole_reader(node.outputs[0], below) is not None


def _read_here(value: ir.Value, node: ir.Node) -> bool:
    """Whether nothing else reads a value but its shape."""
    return not value.is_graph_output() and all(u.node is node or u.node.op_type == "Shape" for u in value.uses())


def _split_axis(narrow: Sequence[Any], wide: Sequence[Any]) -> int | None:
    """The axis of the narrow shape that is two axes of the wide one; all others are provably the same."""
    if len(wide) != len(narrow) + 1:
        return None
    for axis in range(len(narrow)):
        before = zip(narrow[:axis], wide[:axis], strict=True)
        after = zip(narrow[axis + 1 :], wide[axis + 2 :], strict=True)
        if all(same_dim(a, b) for a, b in (*before, *after)):
            return axis
    return None


def _moved_split(source: ir.Value, node: ir.Node, perm: list[int], axis: int) -> _Facts:
    """Reshape(Transpose(x)): split the axis of x, then move the two."""
    assert source.shape is not None and node.outputs[0].shape is not None
    at, result = perm[axis], list(node.outputs[0].shape)
    shape = list(source.shape)
    middle = [*shape[:at], result[axis], result[axis + 1], *shape[at + 1 :]]
    target = _target(shape, middle, source)
    return _Facts(source, node.outputs[0], _widened(perm, at), target, tuple(middle), False)


def _moved_merge(source: ir.Value, node: ir.Node, perm: list[int], axis: int) -> _Facts:
    """Transpose(Reshape(x)): move the two axes of x, then merge them."""
    assert source.shape is not None and node.outputs[0].shape is not None
    wide = _widened(perm, axis)
    middle = [list(source.shape)[i] for i in wide]
    target = _target(middle, list(node.outputs[0].shape), source)
    return _Facts(source, node.outputs[0], wide, target, tuple(middle), True)


def _widened(perm: list[int], at: int) -> tuple[int, ...]:
    """A permutation in which one axis is two adjacent ones."""
    found: list[int] = []
    for axis in perm:
        found.extend((at, at + 1) if axis == at else (axis if axis < at else axis + 1,))
    return tuple(found)


def _target(before: list[Any], after: list[Any], at: ir.Value) -> tuple[int, ...]:
    target = reshape_target(before, after)
    if target is None:
        raise Declined("shape-not-proven", f"the other side of {shape_text(at)} takes more than one -1", at=at)
    return tuple(target)


SplitAxis.examples = (
    fires(
        "float[S,8,16] x",
        "float[2,4,S,16] y",
        "t = Transpose <perm = [1, 0, 2]> (x) s = Shape <start = 1, end = 3> (t) n = Concat <axis = 0> (lead, s) "
        "r = Reshape (t, n) y = Abs (r)",
        emits={"Transpose": 1, "Reshape": 1},
        constants="int64[2] lead = {-1, 4}, float[2,4,S,16] r",
    ),
    fires(
        "float[B,4,S,16] x",
        "float[S,M,16] y",
        "s = Shape <start = 2, end = 4> (x) n = Concat <axis = 0> (lead, s) r = Reshape (x, n) "
        "t = Transpose <perm = [1, 0, 2]> (r) y = Abs (t)",
        emits={"Transpose": 1, "Reshape": 1},
        constants="int64[1] lead = {-1}, float[M,S,16] r",
    ),
    declines(
        "float[S,M,16] x",
        "float[M,S,16] t, float[M,S,2,8] y",
        "t = Transpose <perm = [1, 0, 2]> (x) s = Shape <start = 0, end = 2> (t) n = Concat <axis = 0> (s, tail) "
        "y = Reshape (t, n)",
        because="read-elsewhere",
        constants="int64[2] tail = {2, 8}",
    ),
    declines(
        "float[M,S,T] x",
        "float[S,B,4,T] y",
        "t = Transpose <perm = [1, 0, 2]> (x) s = Shape (x) b = Slice (s, two, three) a = Slice (s, one, two) "
        "n = Concat <axis = 0> (a, lead, b) y = Reshape (t, n)",
        because="shape-not-proven",
        constants="int64[2] lead = {-1, 4}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}",
    ),
)
