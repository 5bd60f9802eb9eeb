"""LAY001: a transpose of a transpose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..graph import Builder, attribute, producer
from ..look import no_match, past_identity, unused_elsewhere
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
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
    examples: ClassVar[tuple[Example, ...]] = ()

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
        moved = g.op(
            "Transpose", facts.x, perm=list(facts.perm), dtype=facts.x.dtype, shape=facts.output.shape
        )
        return Replacement(old=[facts.output], new=[moved])
