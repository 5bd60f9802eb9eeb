"""LAY001: a transpose of a transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, producer
from ..look import no_match, past_identity, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule, Safety
from .target import pass_through

__all__ = ["TransposeOfTranspose"]


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    perm: tuple[int, ...]
    output: ir.Value


class TransposeOfTranspose(Rule):
    """Two transposes in a row.

    ## What it finds
    ``Transpose(Transpose(x))``.

    ## Why
    Each transpose copies the tensor. Splitting heads after merging them, as lowered attention meets the
    model's own code, leaves such pairs.

    ## Before -> After
    ``Transpose, Transpose`` -> one ``Transpose`` with the composed permutation, or nothing.

    ## When it declines
    * ``read-elsewhere``: the inner one has other readers and the two do not cancel, so nothing is saved.
    * ``graph-output``: the pair connects an input of the graph with an output.

    ## Numerics
    EXACT: elements are moved, not computed.

    ## References
    ONNX operator Transpose-13.
    """

    code: ClassVar[str] = "LAY001"
    name: ClassVar[str] = "transpose-of-transpose"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Transpose"})
    emits: ClassVar[tuple[str, ...]] = ("Transpose",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`TransposeOfTranspose`."""
        inner_out = None if node.inputs[0] is None else past_identity(node.inputs[0])
        inner = producer(inner_out, "Transpose")
        if inner is None or inner_out is None or inner.inputs[0] is None:
            raise no_match()
        outer_perm, inner_perm = attribute(node, "perm"), attribute(inner, "perm")
        if outer_perm is None or inner_perm is None:
            raise no_match("a reversal of unknown rank")
        perm = tuple(int(inner_perm[axis]) for axis in outer_perm)
        if perm == tuple(range(len(perm))):
            pass_through(node.outputs[0], inner.inputs[0])
        elif not unused_elsewhere(inner_out, node):
            raise Declined("read-elsewhere", "the inner transpose has other readers", at=inner)
        return _Facts(inner.inputs[0], perm, node.outputs[0])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`TransposeOfTranspose`."""
        if facts.perm == tuple(range(len(facts.perm))):
            return pass_through(facts.output, facts.x)
        moved = g.op("Transpose", facts.x, perm=list(facts.perm), dtype=facts.x.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[moved])


TransposeOfTranspose.examples = (
    fires(
        "float[B,4,S,8] x",
        "float[B,S,8,4] y",
        "a = Transpose <perm = [0, 2, 1, 3]> (x) y = Transpose <perm = [0, 1, 3, 2]> (a)",
        emits={"Transpose": 1},
    ),
    fires(
        "float[2,3,5] x",
        "float[2,3,5] y",
        ("h = Neg (x) a = Transpose <perm = [0, 2, 1]> (h) b = Transpose <perm = [0, 2, 1]> (a) y = Abs (b)"),
        emits={"Transpose": 0},
    ),
    declines(
        "float[B,4,S,8] x",
        "float[B,S,8,4] y, float[B,S,4,8] a",
        "a = Transpose <perm = [0, 2, 1, 3]> (x) y = Transpose <perm = [0, 1, 3, 2]> (a)",
        because="read-elsewhere",
    ),
    declines(
        "float[B,S] x",
        "float[B,S] y",
        "a = Transpose <perm = [1, 0]> (x) y = Transpose <perm = [1, 0]> (a)",
        because="graph-output",
    ),
)
