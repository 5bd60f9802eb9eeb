"""LAY004: a transpose that moves only axes of size one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute
from ..look import no_match
from ..rule import Context, Declined, Replacement, Rule, Safety
from .target import emit_reshape, reshape_target, shape_text

__all__ = ["UnitTranspose"]


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    output: ir.Value
    target: tuple[int, ...]


class UnitTranspose(Rule):
    """A transpose that moves only axes of size one.

    ## What it finds
    ``Transpose(x)`` in which the axes longer than one keep their order.

    ## Why
    No element moves: a Reshape says so, costs no copy and joins the reshapes around it.

    ## Before -> After
    ``Transpose`` -> ``Reshape`` to a constant shape.

    ## When it declines
    * ``shape-not-proven``: the shape cannot be written with constants, 0 and one -1.

    ## Numerics
    EXACT: no element is computed or moved.

    ## References
    ONNX operators Transpose-13 and Reshape-14.
    """

    code: ClassVar[str] = "LAY004"
    name: ClassVar[str] = "unit-transpose"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Transpose"})
    emits: ClassVar[tuple[str, ...]] = ("Reshape",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`UnitTranspose`."""
        source, perm = node.inputs[0], attribute(node, "perm")
        if source is None or source.shape is None or perm is None:
            raise no_match()
        shape = list(source.shape)
        moved = [axis for axis in perm if shape[axis] != 1]
        if moved != sorted(moved) or list(perm) == sorted(perm):
            raise no_match()
        target = reshape_target(shape, [shape[axis] for axis in perm])
        if target is None:
            detail = f"{shape_text(source)} takes more than constants and one -1"
            raise Declined("shape-not-proven", detail, at=node)
        return _Facts(source, node.outputs[0], tuple(target))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`UnitTranspose`."""
        return Replacement(old=[facts.output], new=[emit_reshape(g, facts.source, facts.output, facts.target)])


UnitTranspose.examples = (
    fires(
        "float[B,1,S,8] x",
        "float[B,S,1,8] y",
        "y = Transpose <perm = [0, 2, 1, 3]> (x)",
        emits={"Transpose": 0, "Reshape": 1},
    ),
    fires(
        "float[1,5,6] x",
        "float[5,6,1] y",
        "y = Transpose <perm = [1, 2, 0]> (x)",
        emits={"Transpose": 0, "Reshape": 1},
    ),
    declines(
        "float[1,B,S] x",
        "float[B,S,1] y",
        "y = Transpose <perm = [1, 2, 0]> (x)",
        because="shape-not-proven",
    ),
    declines(
        "float[B,1,S,T] x",
        "float[B,S,T,1] y",
        "y = Transpose <perm = [0, 2, 3, 1]> (x)",
        because="shape-not-proven",
    ),
)
