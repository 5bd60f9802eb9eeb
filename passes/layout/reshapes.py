"""LAY002: several shape-only operators in a row."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder
from ..look import no_match, same_dims, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule, Safety
from .target import emit_reshape, is_shape_only, pass_through, reshape_target, shape_text

__all__ = ["ReshapeOfReshape"]


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    output: ir.Value
    target: tuple[int, ...] | None


class ReshapeOfReshape(Rule):
    """Shape-only operators in a row.

    ## What it finds
    Two or more of ``Reshape``, ``Squeeze``, ``Unsqueeze`` and ``Flatten``, each reading the one before.

    ## Why
    The elements keep their order through all of them, so the last shape is all that counts.

    ## Before -> After
    ``Reshape, Unsqueeze`` -> one ``Reshape`` to a constant shape, or nothing when the shape comes back.

    ## When it declines
    * ``shape-not-proven``: the final shape cannot be written with constants, 0 and one -1.
    * ``read-elsewhere``: a value in between has other readers and nothing would be saved.
    * ``graph-output``: the chain connects an input of the graph with an output.

    ## Numerics
    EXACT: no element is computed or moved.

    ## References
    ONNX operator Reshape-14.
    """

    code: ClassVar[str] = "LAY002"
    name: ClassVar[str] = "reshape-of-reshape"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})
    emits: ClassVar[tuple[str, ...]] = ("Reshape",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`ReshapeOfReshape`."""
        chain = _chain(node)
        if len(chain) < 2:
            raise no_match()
        output = node.outputs[0]
        for upper in reversed(chain[1:]):
            source = upper.inputs[0]
            if source is not None and same_dims(source, output):
                pass_through(output, source)
                return _Facts(source, output, None)
        if not unused_elsewhere(chain[1].outputs[0], node):
            raise Declined("read-elsewhere", "the value in between has other readers", at=chain[1])
        source = _top_private(chain)
        shapes = (source.shape, output.shape)
        target = reshape_target(*(None if s is None else list(s) for s in shapes))
        if target is None:
            detail = f"{shape_text(source)} to {shape_text(output)} takes more than constants and one -1"
            raise Declined("shape-not-proven", detail, at=node)
        return _Facts(source, output, tuple(target))

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`ReshapeOfReshape`."""
        if facts.target is None:
            return pass_through(facts.output, facts.source)
        return Replacement(old=[facts.output], new=[emit_reshape(g, facts.source, facts.output, facts.target)])


def _chain(node: ir.Node) -> list[ir.Node]:
    """The node and the shape-only nodes above it, in upward order."""
    chain = [node]
    while chain[-1].inputs[0] is not None and is_shape_only(above := chain[-1].inputs[0].producer()):
        assert above is not None
        chain.append(above)
    return chain


def _top_private(chain: list[ir.Node]) -> ir.Value:
    """What the highest node reads that serves this chain alone."""
    top = chain[1]
    for lower, upper in itertools.pairwise(chain):
        if not unused_elsewhere(upper.outputs[0], lower):
            break
        top = upper
    assert top.inputs[0] is not None
    return top.inputs[0]


ReshapeOfReshape.examples = (
    fires(
        "float[B,S,8] x",
        "float[B,S,2,4] y",
        "a = Reshape (x, flat) y = Reshape (a, split)",
        emits={"Reshape": 1},
        constants="int64[3] flat = {0, 0, -1}, int64[4] split = {0, 0, 2, 4}",
    ),
    fires(
        "float[2,1,6] x",
        "float[3,4] y",
        "a = Squeeze (x, one) y = Reshape (a, shape)",
        emits={"Reshape": 1, "Squeeze": 0},
        constants="int64[1] one = {1}, int64[2] shape = {3, 4}",
    ),
    declines(
        "float[B,S,8] x, int64[3] rows",
        "float[N,M,8] y",
        "a = Reshape (x, flat) y = Reshape (a, rows)",
        because="shape-not-proven",
        constants="int64[2] flat = {-1, 8}",
    ),
    declines(
        "float[B,S,8] x",
        "float[B,S,2,4] y, float[B,S,8,1] a",
        "a = Unsqueeze (x, last) y = Reshape (a, split)",
        because="read-elsewhere",
        constants="int64[1] last = {-1}, int64[4] split = {0, 0, 2, 4}",
    ),
)
