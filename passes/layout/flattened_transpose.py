"""LAY009: a transpose of the last two axes between a flattening of the leading ones and its undoing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, producer
from ..look import no_match, sole_reader
from ..rule import Context, Declined, Replacement, Rule, Safety
from ..symbols import same_dim
from .target import shape_text

__all__ = ["FlattenedTranspose"]


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    output: ir.Value
    rank: int


class FlattenedTranspose(Rule):
    """A transpose of the last two axes on a tensor whose leading axes were flattened for it.

    ## What it finds
    ``Reshape(Transpose(Reshape(x, (-1, R, C)), (0, 2, 1)), (..., C, R))`` where the leading axes come back:
    how torch's exporter transposes the keys of a decomposed attention.

    ## Why
    ``Transpose`` takes leading axes as they are. Two reshapes go, with the nodes that compute their targets,
    and the transpose can meet others.

    ## Before -> After
    ``Reshape, Transpose, Reshape`` -> ``Transpose`` of the last two axes.

    ## When it declines
    * ``shape-not-proven``: the axes after are not provably those before with the last two exchanged.

    ## Numerics
    EXACT: elements are moved, not computed.

    ## References
    ONNX operators Transpose-13 and Reshape-14.
    """

    code: ClassVar[str] = "LAY009"
    name: ClassVar[str] = "flattened-transpose"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Transpose"})
    emits: ClassVar[tuple[str, ...]] = ("Transpose",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`FlattenedTranspose`."""
        flatten = producer(node.inputs[0], "Reshape")
        back = sole_reader(node.outputs[0], "Reshape")
        source = None if flatten is None else flatten.inputs[0]
        if flatten is None or back is None or source is None or tuple(attribute(node, "perm") or ()) != (0, 2, 1):
            raise no_match()
        before, flat, after = source.shape, flatten.outputs[0].shape, back.outputs[0].shape
        if before is None or flat is None or after is None or len(flat) != 3:
            raise no_match("ranks unknown")
        *leading, rows, columns = before
        wanted = [*leading, columns, rows]
        kept = len(after) == len(wanted) and same_dim(flat[1], rows) and same_dim(flat[2], columns)
        if not kept or not all(same_dim(a, b) for a, b in zip(wanted, after, strict=True)):
            detail = f"{shape_text(source)} to {shape_text(back.outputs[0])} is more than an exchange of two axes"
            raise Declined("shape-not-proven", detail, at=node)
        return _Facts(source, back.outputs[0], len(wanted))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`FlattenedTranspose`."""
        perm = [*range(facts.rank - 2), facts.rank - 1, facts.rank - 2]
        dtype = facts.source.dtype
        return Replacement(
            old=[facts.output],
            new=[g.op("Transpose", facts.source, perm=perm, dtype=dtype, shape=facts.output.shape)],
        )


FlattenedTranspose.examples = (
    fires(
        "float[B,2,S,4] x",
        "float[B,2,4,S] y",
        "s = Shape <start = 2, end = 3> (x) flat = Concat <axis = 0> (rest, s, four) f = Reshape (x, flat) "
        "t = Transpose <perm = [0, 2, 1]> (f) b = Shape <start = 0, end = 2> (x) "
        "n = Concat <axis = 0> (b, four, s) y = Reshape (t, n)",
        emits={"Transpose": 1, "Reshape": 0},
        constants="int64[1] four = {4}, int64[1] rest = {-1}",
    ),
    fires(
        "float[2,3,5,4] x",
        "float[2,3,4,5] y",
        "f = Reshape (x, flat) t = Transpose <perm = [0, 2, 1]> (f) y = Reshape (t, back)",
        emits={"Transpose": 1, "Reshape": 0},
        constants="int64[3] flat = {-1, 5, 4}, int64[4] back = {2, 3, 4, 5}",
    ),
    declines(
        "float[2,3,5,4] x",
        "float[3,2,4,5] y",
        "f = Reshape (x, flat) t = Transpose <perm = [0, 2, 1]> (f) y = Reshape (t, back)",
        because="shape-not-proven",
        constants="int64[3] flat = {-1, 5, 4}, int64[4] back = {3, 2, 4, 5}",
    ),
    declines(
        "float[B,2,6,4] x",
        "float[B,2,3,8] y",
        "f = Reshape (x, flat) t = Transpose <perm = [0, 2, 1]> (f) y = Reshape (t, back)",
        because="shape-not-proven",
        constants="int64[3] flat = {-1, 6, 4}, int64[4] back = {0, 2, 3, 8}",
    ),
)
