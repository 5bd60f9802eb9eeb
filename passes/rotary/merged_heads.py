"""ROT002: rotary embedding on heads that were just split off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, dims, producer
from ..look import no_match, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule, Safety

__all__ = ["RotaryMergedHeads"]

_SWAP = (0, 2, 1, 3)


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    rest: tuple[ir.Value | None, ...]
    interleaved: int
    rotary: int | None
    scale: float | None
    output: ir.Value
    heads: int
    size: int


class RotaryMergedHeads(Rule):
    """Rotary embedding between the split of the heads and attention.

    ## What it finds
    ``RotaryEmbedding(Transpose(x))`` of rank 4 where the transpose exchanges sequence and heads.

    ## Why
    The operator reads (batch, sequence, heads * size) as well. Rotating before the split lets the transpose
    meet the one that attention operators of that layout want undone, and both go.

    ## Before -> After
    ``Reshape, Transpose, RotaryEmbedding`` -> ``RotaryEmbedding(num_heads), Reshape, Transpose``.

    ## When it declines
    * ``shape-unknown``: head count or head size is no number.
    * ``read-elsewhere``: the transposed tensor has other readers, so the transpose would stay.

    ## Numerics
    EXACT: the same kernel on the same numbers in another layout.

    ## References
    onnxruntime contrib operator RotaryEmbedding: input of rank 3 or 4.
    """

    code: ClassVar[str] = "ROT002"
    name: ClassVar[str] = "rotary-merged-heads"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"com.microsoft::RotaryEmbedding"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::RotaryEmbedding",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`RotaryMergedHeads`."""
        swapped = node.inputs[0]
        transpose = producer(swapped, "Transpose")
        if transpose is None or swapped is None or tuple(attribute(transpose, "perm") or ()) != _SWAP:
            raise no_match()
        source = transpose.inputs[0]
        shape = dims(source)
        if source is None or shape is None or not isinstance(shape[2], int) or not isinstance(shape[3], int):
            raise Declined("shape-unknown", "head count and head size must be known", at=node)
        if not unused_elsewhere(swapped, node):
            raise Declined("read-elsewhere", "the transposed tensor has other readers", at=transpose)
        rest = tuple(node.inputs[1:])
        interleaved = int(attribute(node, "interleaved", 0))
        rotary = attribute(node, "rotary_embedding_dim")
        scale = attribute(node, "scale")
        return _Facts(source, rest, interleaved, rotary, scale, node.outputs[0], shape[2], shape[3])

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`RotaryMergedHeads`."""
        source = facts.source
        assert source.shape is not None
        batch, rows = source.shape[0], source.shape[1]
        merged = [batch, rows, facts.heads * facts.size]
        flat = g.op(
            "Reshape",
            source,
            g.const(np.array([0, 0, merged[2]], np.int64)),
            dtype=source.dtype,
            shape=merged,
        )
        rotated = g.op(
            "com.microsoft::RotaryEmbedding",
            flat,
            *facts.rest,
            interleaved=facts.interleaved,
            num_heads=facts.heads,
            rotary_embedding_dim=facts.rotary,
            scale=facts.scale,
            dtype=source.dtype,
            shape=merged,
        )
        split = g.const(np.array([0, 0, facts.heads, facts.size], np.int64))
        heads = g.op("Reshape", rotated, split, dtype=source.dtype, shape=source.shape)
        moved = g.op("Transpose", heads, perm=list(_SWAP), dtype=source.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[moved])


RotaryMergedHeads.examples = (
    fires(
        "float[B,S,16] x, float[S,4] cos, float[S,4] sin",
        "float[B,2,S,8] y",
        (
            "h = Reshape (x, split) t = Transpose <perm = [0, 2, 1, 3]> (h) y = "
            "com.microsoft.RotaryEmbedding (t, p, cos, sin)"
        ),
        emits={"com.microsoft::RotaryEmbedding": 1, "Transpose": 1},
        constants="int64[4] split = {0, 0, 2, 8}, int64[1] p = {0}",
    ),
    fires(
        "float[2,3,2,16] x, float[3,4] cos, float[3,4] sin",
        "float[2,2,3,16] y",
        (
            "t = Transpose <perm = [0, 2, 1, 3]> (x) y = com.microsoft.RotaryEmbedding <num_heads "
            "= 2, rotary_embedding_dim = 8, interleaved = 1> (t, p, cos, sin)"
        ),
        emits={"com.microsoft::RotaryEmbedding": 1, "Transpose": 1},
        constants="int64[1] p = {0}",
    ),
    declines(
        "float[B,S,16] x, float[S,4] cos, float[S,4] sin",
        "float[B,2,S,8] y, float[B,2,S,8] t",
        (
            "h = Reshape (x, split) t = Transpose <perm = [0, 2, 1, 3]> (h) y = "
            "com.microsoft.RotaryEmbedding (t, p, cos, sin)"
        ),
        because="read-elsewhere",
        constants="int64[4] split = {0, 0, 2, 8}, int64[1] p = {0}",
    ),
    declines(
        "float[B,S,N,8] x, float[S,4] cos, float[S,4] sin",
        "float[B,N,S,8] y",
        ("t = Transpose <perm = [0, 2, 1, 3]> (x) y = com.microsoft.RotaryEmbedding (t, p, cos, sin)"),
        because="shape-unknown",
        constants="int64[1] p = {0}",
    ),
)
