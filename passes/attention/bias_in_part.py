"""ATT014: a bias that is added to a part of the scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, dims, op_name, producer
from ..layout.whole_again import Part, end_to_end, part_of_axis
from ..look import no_match
from ..rule import Context, Example, Replacement, Rule, Safety
from ..symbols import broadcast, same_dim

__all__ = ["BiasInPart"]

_STEPS = 8


@dataclass(frozen=True, slots=True)
class Facts:
    """The scores, the way from their part to what replaces it (nodes, lowest first), and what stays around it."""

    node: ir.Node
    source: ir.Value
    way: tuple[tuple[ir.Node, int], ...]
    axis: int
    before: int
    after: int


class BiasInPart(Rule):
    """Scores of which a part has a bias: all but those of a class token, say.

    ## What it finds
    A Concat on the way to a softmax whose pieces are slices of one tensor, end to end, and one of them has
    something added to it, in that shape or in another view of it: ``scores[:, :, 1:, 1:] += bias``.

    ## Why
    It is the tensor plus a bias that is 0 elsewhere, and a bias is what attention takes.

    ## Before -> After
    ``Concat(x[:1], x[1:] + b)`` -> ``Add(x, Pad(b))``

    ## When it declines
    It finds nothing where the length of what stays behind the part, or of a view of it, is not a number.

    ## Numerics
    ROUNDING: several biases are added up before they are added to the scores.

    ## References
    Li et al., MViTv2, 2022, section 4.1 (relative positions beside a class token).
    """

    code = "ATT014"
    name = "bias-in-part"
    safety = Safety.ROUNDING
    anchors = frozenset({"Concat"})
    emits = ("Add", "Pad")

    def examine(self, node: ir.Node, context: Context) -> Facts:
        shape = dims(node.outputs[0])
        if shape is None or len(node.inputs) not in (2, 3) or not _reaches_softmax(node.outputs[0]):
            raise no_match()
        axis = int(attribute(node, "axis", 0)) % len(shape)
        parts = [part_of_axis(value, axis) for value in node.inputs]
        changed = [n for n, part in enumerate(parts) if part is None]
        kept = [part for part in parts if part is not None]
        if len(changed) != 1 or any(part.source is not kept[0].source for part in kept):
            raise no_match()
        piece = node.inputs[changed[0]]
        found = _way(piece, kept[0].source, axis, _STEPS)
        if piece is None or found is None or not found[1]:
            raise no_match()
        core, way = found
        row = [*parts[: changed[0]], core, *parts[changed[0] + 1 :]]
        if not end_to_end([p for p in row if p is not None], axis):
            raise no_match("the slices do not make up the whole")
        sizes = [(dims(value) or ())[axis] for value in node.inputs]
        before, after = _sum(sizes[: changed[0]]), _sum(sizes[changed[0] + 1 :])
        if before is None or after is None or not _can_spread(way, (dims(piece) or ())[axis], axis):
            raise no_match("a length is not a number")
        return Facts(node, core.source, way, axis, before, after)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old, source = facts.node.outputs[0], facts.source
        bias = _rebuilt(g, facts)
        rank = len(dims(source) or ())
        pads = np.zeros(2 * rank, np.int64)
        pads[facts.axis], pads[rank + facts.axis] = facts.before, facts.after
        shape = list(bias.shape or ())
        shape[facts.axis] = None if source.shape is None else source.shape[facts.axis]
        padded = g.op("Pad", bias, g.const(pads), dtype=source.dtype, shape=shape)
        return Replacement(old=[old], new=[g.op("Add", source, padded, dtype=old.dtype, shape=source.shape)])


def _sum(sizes: Sequence[int | str | None]) -> int | None:
    """The sum of sizes; None unless all are numbers."""
    return sum(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else None


def _reaches_softmax(value: ir.Value) -> bool:
    """Whether a value is on its way to a softmax."""
    waiting = [value]
    for _ in range(_STEPS):
        nodes = [use.node for v in waiting for use in v.uses()]
        if any(op_name(n) == "Softmax" for n in nodes):
            return True
        waiting = [n.outputs[0] for n in nodes if n.op_type in ("Add", "Mul", "Div", "Where", "Concat", "Cast")]
    return False


def _way(
    value: ir.Value | None, source: ir.Value, axis: int, steps: int
) -> tuple[Part, tuple[tuple[ir.Node, int], ...]] | None:
    """From a slice of the source down to a value, over additions and other views: (node, which operand it enters)."""
    core = part_of_axis(value, axis)
    if core is not None and core.source is source:
        return core, ()
    node = producer(value, "Add", "Reshape")
    if node is None or not steps:
        return None
    for place in range(2 if node.op_type == "Add" else 1):
        found = _way(node.inputs[place], source, axis, steps - 1)
        if found is not None:
            return found[0], (*found[1], (node, place))
    return None


def _can_spread(way: Sequence[tuple[ir.Node, int]], length: int | str | None, axis: int) -> bool:
    """Whether what is added can be brought to the size it is added at: along the axis, and whole before a view."""
    views = [n for n, (node, _) in enumerate(way) if node.op_type == "Reshape"]
    if way[0][0].op_type == "Reshape" and not any(node.op_type == "Add" for node, _ in way):
        return False
    for node, _ in way[: views[-1] + 1] if views else ():
        if not all(isinstance(d, int) for d in (dims(node.outputs[0]) or (None,))[1:]):
            return False
    if isinstance(length, int):
        return True
    added = [(dims(node.inputs[1 - place]) or (), dims(node.outputs[0]) or ()) for node, place in way]
    return not views and any(len(a) == len(b) and a[axis] == length is not None for a, b in added)


def _rebuilt(g: Builder, facts: Facts) -> ir.Value:
    """The way again, from 0 instead of the slice."""
    bias: ir.Value | None = None
    for number, (node, place) in enumerate(facts.way):
        shape = dims(node.outputs[0]) or ()
        if node.op_type == "Reshape":
            if bias is not None:
                target = g.const(np.array([-1, *shape[1:]], np.int64))
                first = _first_of(bias, node)
                bias = g.op("Reshape", bias, target, dtype=bias.dtype, shape=[first, *shape[1:]])
            continue
        added = node.inputs[1 - place]
        assert added is not None
        bias = added if bias is None else g.op("Add", bias, added, dtype=added.dtype, shape=broadcast(bias, added))
        viewed = any(later.op_type == "Reshape" for later, _ in facts.way[number:])
        wanted = [d if isinstance(d, int) and (viewed or i == facts.axis) else 1 for i, d in enumerate(shape)]
        bias = _spread(g, bias, wanted)
    assert bias is not None
    return bias


def _first_of(bias: ir.Value, view: ir.Node) -> ir.SymbolicDim | int | None:
    """The leading size behind a view: the scores' own where the bias has one for each of the batch."""
    whole, result = view.inputs[0], view.outputs[0]
    if whole is None or None in (bias.shape, whole.shape, result.shape):
        return None
    return result.shape[0] if same_dim(bias.shape[0], whole.shape[0]) else None  # type: ignore[index]


def _spread(g: Builder, value: ir.Value, wanted: Sequence[int]) -> ir.Value:
    """A value with at least these sizes."""
    here = [1] * (len(wanted) - len(value.shape or ())) + list(value.shape or ())
    if len(here) == len(value.shape or ()) and all(w == 1 or h == w for h, w in zip(here, wanted, strict=True)):
        return value
    shape = [h if w == 1 else w for h, w in zip(here, wanted, strict=True)]
    return g.op("Expand", value, g.const(np.array(wanted, np.int64)), dtype=value.dtype, shape=shape)


def _text(body: str, bias: str = "float[B,4,S,8] b", keys: str = "9") -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,{keys}] x, {bias}) => (float[B,4,S,{keys}] y)
<int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] far = {{9223372036854775807}},
 int64[1] ax = {{3}}, int64[5] grid = {{0, 4, 6, 2, 4}}, int64[4] flat = {{0, 4, 6, 8}}> {{
  head = Slice (x, zero, one, ax)
  tail = Slice (x, one, far, ax)
{body}
  y = Softmax <axis = -1> (c)
}}"""


_PLAIN = "  t = Add (tail, b)\n  c = Concat <axis = -1> (head, t)"
BiasInPart.examples = (
    Example(text=_text(_PLAIN), fires=1, emits={"Pad": 1, "Concat": 0}),
    Example(
        text=_text(
            "  v = Reshape (tail, grid)\n  w = Add (v, b)\n  t = Reshape (w, flat)\n  c = Concat <axis = 3> (head, t)",
            "float[B,4,6,2,1] b",
        ).replace("S,9", "6,9"),
        fires=1,
        emits={"Pad": 1, "Concat": 0},
    ),
    Example(text=_text(_PLAIN.replace("(tail, b)", "(head, b)"), "float[B,4,S,1] b", "2"), because="no-match"),
    Example(text=_text(_PLAIN.replace("Add", "Mul")), because="no-match"),
)
