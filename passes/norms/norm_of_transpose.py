"""NRM005: a norm over the last axis of a transpose that leaves the last axis where it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, op_name, producer
from ..look import no_match, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule, Safety

__all__ = ["NormOfTranspose"]


@dataclass(frozen=True, slots=True)
class _Facts:
    op: str
    source: ir.Value
    rest: tuple[ir.Value | None, ...]
    attributes: tuple[tuple[str, Any], ...]
    perm: tuple[int, ...]
    output: ir.Value


class NormOfTranspose(Rule):
    """A norm of a transposed tensor, where the transpose leaves the last axis in place.

    ## What it finds
    ``SimplifiedLayerNormalization``, ``RMSNormalization`` or ``LayerNormalization`` over the last axis of
    ``Transpose(x)``, as models with query and key norms write between the head split and the rotation.

    ## Why
    The norm looks at one row at a time, so it may run first. The transpose then meets rotary embedding and
    attention, which take it in.

    ## Before -> After
    ``Transpose, SimplifiedLayerNormalization`` -> ``SimplifiedLayerNormalization, Transpose``.

    ## When it declines
    * ``axis``: the transpose moves the last axis, or the norm runs over more than it.
    * ``read-elsewhere``: the transposed tensor has other readers, so it would be made twice.

    ## Numerics
    EXACT: the same kernel on the same rows in another order.

    ## References
    ONNX operator LayerNormalization-17.
    """

    code: ClassVar[str] = "NRM005"
    name: ClassVar[str] = "norm-of-transpose"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset(
        {"SimplifiedLayerNormalization", "RMSNormalization", "LayerNormalization"}
    )
    emits: ClassVar[tuple[str, ...]] = (
        "SimplifiedLayerNormalization",
        "RMSNormalization",
        "LayerNormalization",
    )

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`NormOfTranspose`."""
        moved = node.inputs[0]
        transpose = producer(moved, "Transpose")
        perm = None if transpose is None else attribute(transpose, "perm")
        if transpose is None or moved is None or perm is None or transpose.inputs[0] is None:
            raise no_match()
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            raise no_match("mean or deviation is read")
        last = len(perm) - 1
        if perm[-1] != last or attribute(node, "axis", -1) not in (-1, last):
            raise Declined("axis", "the transpose moves what the norm runs over", at=node)
        if not unused_elsewhere(moved, node):
            raise Declined("read-elsewhere", "the transposed tensor has other readers", at=transpose)
        attributes = tuple((k, a.value) for k, a in node.attributes.items())
        rest = tuple(node.inputs[1:])
        return _Facts(op_name(node), transpose.inputs[0], rest, attributes, tuple(perm), node.outputs[0])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`NormOfTranspose`."""
        dtype = facts.output.dtype
        attributes = dict(facts.attributes)
        normed = g.op(facts.op, facts.source, *facts.rest, dtype=dtype, shape=facts.source.shape, **attributes)
        moved = g.op("Transpose", normed, perm=list(facts.perm), dtype=dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[moved])


NormOfTranspose.examples = (
    fires(
        "float[B,S,2,8] x",
        "float[B,2,S,8] y",
        ("t = Transpose <perm = [0, 2, 1, 3]> (x) y = SimplifiedLayerNormalization <axis = -1> (t, w)"),
        emits={"SimplifiedLayerNormalization": 1, "Transpose": 1},
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    fires(
        "float[2,3,8] x",
        "float[3,2,8] y",
        "t = Transpose <perm = [1, 0, 2]> (x) y = LayerNormalization <axis = -1> (t, w, c)",
        emits={"LayerNormalization": 1, "Transpose": 1},
        constants=(
            "float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}, float[8] c = {1, 0.5, -2, "
            "0.125, -1, 0.75, 2.5, -0.5}"
        ),
    ),
    declines(
        "float[B,S,2,8] x",
        "float[B,2,S,8] y, float[B,2,S,8] t",
        ("t = Transpose <perm = [0, 2, 1, 3]> (x) y = SimplifiedLayerNormalization <axis = -1> (t, w)"),
        because="read-elsewhere",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
    declines(
        "float[B,8,S] x",
        "float[B,S,8] y",
        "t = Transpose <perm = [0, 2, 1]> (x) y = SimplifiedLayerNormalization <axis = -1> (t, w)",
        because="axis",
        constants="float[8] w = {0.5, -1.5, 2, 0.25, 3, -0.75, 1.25, 4}",
    ),
)
