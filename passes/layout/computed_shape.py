"""LAY006: the target of a Reshape or Expand computed in the graph though constants say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, constant
from ..look import no_match
from ..rule import Context, Declined, Replacement, Rule, Safety
from .target import emit_reshape, expand_target, reshape_target, shape_text

__all__ = ["ComputedShape"]


@dataclass(frozen=True, slots=True)
class _Facts:
    op: str
    source: ir.Value
    output: ir.Value
    target: tuple[int, ...]


class ComputedShape(Rule):
    """A shape computed by nodes that a constant can state.

    ## What it finds
    ``Reshape`` and ``Expand`` whose target is a chain of ``Shape``, ``Gather``, ``Concat`` and the like, while
    the shapes on both sides are known well enough to write it with numbers, 0 (same as the input), 1 (for
    Expand) and one -1.

    ## Why
    The chain runs on the host for every call, and it ties layers together that have nothing to do with each
    other.

    ## Before -> After
    ``Shape, Concat, Reshape`` -> ``Reshape`` to a constant shape.

    ## When it declines
    * ``shape-not-proven``: two or more axes are neither numbers nor those of the input.

    ## Numerics
    EXACT: no element is computed or moved.

    ## References
    ONNX operators Reshape-14 and Expand-13.
    """

    code: ClassVar[str] = "LAY006"
    name: ClassVar[str] = "computed-shape"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Reshape", "Expand"})
    emits: ClassVar[tuple[str, ...]] = ("Reshape", "Expand")

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`ComputedShape`."""
        source, output = node.inputs[0], node.outputs[0]
        if source is None or constant(node.inputs[1]) is not None:
            raise no_match()
        solve = reshape_target if node.op_type == "Reshape" else expand_target
        shapes = (source.shape, output.shape)
        target = solve(*(None if s is None else list(s) for s in shapes))
        if target is None:
            detail = f"{shape_text(source)} to {shape_text(output)} cannot be written with constants"
            raise Declined("shape-not-proven", detail, at=node)
        return _Facts(node.op_type, source, output, tuple(target))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`ComputedShape`."""
        if facts.op == "Reshape":
            return Replacement(old=[facts.output], new=[emit_reshape(g, facts.source, facts.output, facts.target)])
        shape = g.const(np.array(facts.target, np.int64))
        wide = g.op("Expand", facts.source, shape, dtype=facts.source.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[wide])


ComputedShape.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,2,4] y",
        "n = Shape <start = 0, end = 2> (x) t = Concat <axis = 0> (n, tail) y = Reshape (x, t)",
        emits={"Shape": 0, "Concat": 0, "Reshape": 1},
        constants="int64[2] tail = {2, 4}",
    ),
    fires(
        "float[B,2,1,S,8] x",
        "float[B,2,3,S,8] y",
        (
            "b = Shape <start = 0, end = 1> (x) s = Shape <start = 3, end = 4> (x) t = Concat "
            "<axis = 0> (b, two, three, s, eight) y = Expand (x, t)"
        ),
        emits={"Shape": 0, "Expand": 1},
        constants="int64[1] two = {2}, int64[1] three = {3}, int64[1] eight = {8}",
    ),
    declines(
        "float[B,S,8] x, float[N,M] like",
        "float[N,M,K] y",
        "n = Shape (like) t = Concat <axis = 0> (n, rest) y = Reshape (x, t)",
        because="shape-not-proven",
        constants="int64[1] rest = {-1}",
    ),
    declines(
        "float[1,8] x, float[B,S] like",
        "float[B,8] y",
        "n = Shape <start = 0, end = 1> (like) t = Concat <axis = 0> (n, eight) y = Expand (x, t)",
        because="shape-not-proven",
        constants="int64[1] eight = {8}",
    ),
)
