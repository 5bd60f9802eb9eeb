"""ROT001: rotary position embedding written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, op_name
from ..look import no_match, require
from ..rule import Context, Declined, Replacement, Rule
from .halves import Half, Kind, halved
from .rotation import part_of, parts_of
from .spelling import Spelling, halves_spelling, sum_spelling
from .tables import Axes, align, positions, two_dimensional

__all__ = ["RotaryEmbedding"]


@dataclass(frozen=True, slots=True)
class _Facts:
    x: ir.Value
    output: ir.Value
    cos: Half
    sin: Half
    width: int
    heads: int
    head_size: int
    kind: Kind
    axes: Axes
    dtype: ir.DataType


class RotaryEmbedding(Rule):
    """Rotary position embedding.

    ## What it finds
    ``x * cos + turned(x) * sin`` on a rank-4 tensor, where ``turned`` is (-second half, first half) or swaps
    the elements of each pair; and ``concat(a * cos - b * sin, b * cos + a * sin)`` of the two halves. Tables
    may be computed in the graph or cached, scaled, cast, and vary by batch; heads may be axis 1 or 2. Where
    only the first features are rotated and the others concatenated behind, the whole is taken.

    ## Why
    Nine nodes and five copies of queries and keys become one pass. Tables are computed at half their width.

    ## Before -> After
    ``Mul, Slice, Slice, Neg, Concat, Mul, Add`` -> ``com.microsoft::RotaryEmbedding`` whose caches are the
    halves of the tables as (rows, width / 2). A table without batch gives the offset 0 as position; one with
    batch gives row b * S + s for token s of row b. Positions are never guessed from names.

    ## When it declines
    * ``table-not-doubled``: the two halves of a table are not provably equal.
    * ``table-shape``: a table varies by head or does not line up with the tensor.
    * ``shape-unknown``: head count or head size is no number.
    * ``dtype``: the target has no kernel for the element type.

    ## Numerics
    ROUNDING: the same products and one sum.

    ## References
    Su et al., RoFormer, 2021. onnxruntime contrib operator RotaryEmbedding.
    """

    code: ClassVar[str] = "ROT001"
    name: ClassVar[str] = "rotary-embedding"
    anchors: ClassVar[frozenset[str]] = frozenset({"Add", "Concat"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::RotaryEmbedding",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`RotaryEmbedding`."""
        if context.target.portable:
            raise no_match("no standard operator before opset 23 does this")
        found = sum_spelling(node) if op_name(node) == "Add" else halves_spelling(node)
        if found is None:
            raise no_match()
        if found.x.shape is None or len(found.x.shape) != 4 or not isinstance(found.x.shape[3], int):
            raise Declined("shape-unknown", f"expected rank 4 with a known width, found {found.x.shape}", at=node)
        width = found.x.shape[3]
        table_width = width if found.doubled else width // 2
        axes = align(found.x, found.cos, table_width)
        if align(found.x, found.sin, table_width) != axes:
            raise Declined("table-shape", "cosine and sine do not have the same shape", at=node)
        cos, sin = _half_tables(found, node)
        x, output, head_size = _with_tail(found)
        heads = found.x.shape[axes.heads]
        if not isinstance(heads, int):
            raise Declined("shape-unknown", "the number of heads is not known", at=node)
        dtype = require(x.dtype, "RotaryEmbedding", context.target, node)
        if found.cos.dtype != dtype or found.sin.dtype != dtype:
            raise Declined("dtype", "the tables have another type than the tensor", at=node)
        return _Facts(x, output, cos, sin, width, heads, head_size, found.kind, axes, dtype)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`RotaryEmbedding`."""
        x = facts.x
        assert x.shape is not None
        merged = facts.axes.heads == 2
        if merged:
            shape = [x.shape[0], x.shape[1], facts.heads * facts.head_size]
            x = g.op("Reshape", x, g.const(np.array([0, 0, shape[2]], np.int64)), dtype=facts.dtype, shape=shape)
        partial = facts.width != facts.head_size
        rotated = g.op(
            "com.microsoft::RotaryEmbedding",
            x,
            positions(g, facts.x, facts.axes),
            two_dimensional(g, facts.cos, facts.width),
            two_dimensional(g, facts.sin, facts.width),
            interleaved=int(facts.kind == "interleaved"),
            num_heads=facts.heads if merged or partial else None,
            rotary_embedding_dim=facts.width if partial else None,
            dtype=facts.dtype,
            shape=x.shape,
        )
        if merged:
            split = g.const(np.array([0, 0, facts.heads, facts.head_size], np.int64))
            rotated = g.op("Reshape", rotated, split, dtype=facts.dtype, shape=facts.x.shape)
        return Replacement(old=[facts.output], new=[rotated])


def _half_tables(found: Spelling, node: ir.Node) -> tuple[Half, Half]:
    if not found.doubled:
        return Half(leaf=found.cos), Half(leaf=found.sin)
    cos, sin = halved(found.cos, found.kind), halved(found.sin, found.kind)
    if cos is None or sin is None:
        which = "cosine" if cos is None else "sine"
        raise Declined("table-not-doubled", f"the two halves of the {which} table are not provably equal", at=node)
    return cos, sin


def _with_tail(found: Spelling) -> tuple[ir.Value, ir.Value, int]:
    """(tensor, result, head size), with the features behind the rotated ones where they are only passed on."""
    assert found.x.shape is not None
    width = int(found.x.shape[3])  # type: ignore[arg-type]
    first = part_of(found.x)
    alone = (found.x, found.output, width)
    if first is None or (first.start, first.stop, first.step) != (0, width, 1) or found.output.is_graph_output():
        return alone
    whole = first.source.shape
    assert whole is not None
    size = whole[-1]
    uses = [u.node for u in found.output.uses()]
    if not isinstance(size, int) or len(uses) != 1 or op_name(uses[0]) != "Concat" or len(uses[0].inputs) != 2:
        return alone
    tail = uses[0].inputs[1]
    rest = part_of(tail)
    if tail is None or rest is None or rest.source is not first.source or rest.step != 1:
        return alone
    if (rest.start, rest.stop) != (width, size) or uses[0] not in list(parts_of(found.output, tail)):
        return alone
    return first.source, uses[0].outputs[0], size


RotaryEmbedding.examples = (
    fires(
        "float[B,2,S,8] x, float[B,S,4] f",
        "float[B,2,S,8] y",
        (
            "f2 = Concat <axis = -1> (f, f) cos = Cos (f2) sin = Sin (f2) c = Unsqueeze (cos, "
            "one) s = Unsqueeze (sin, one) a = Mul (x, c) l = Slice (x, zero, half, last) h = "
            "Slice (x, half, far, last) n = Neg (h) r = Concat <axis = -1> (n, l) b = Mul (r, s) "
            "y = Add (a, b)"
        ),
        emits={"com.microsoft::RotaryEmbedding": 1, "Neg": 0},
        constants=(
            "int64[1] one = {1}, int64[1] zero = {0}, int64[1] half = {4}, int64[1] last = {3}, "
            "int64[1] far = {9223372036854775807}"
        ),
    ),
    fires(
        "float[B,S,2,16] x, float[1,S,1,4] f",
        "float[B,S,2,16] y",
        (
            "c4 = Cos (f) s4 = Sin (f) cu = Unsqueeze (c4, five) su = Unsqueeze (s4, five) ce = "
            "Expand (cu, two) se = Expand (su, two) c = Reshape (ce, width) s = Reshape (se, "
            "width) x8 = Slice (x, zero, eight, last) rest = Slice (x, eight, far, last) a = Mul "
            "(x8, c) even = Slice (x8, zero, far, last, step) odd = Slice (x8, first, far, last, "
            "step) n = Neg (odd) nu = Unsqueeze (n, end) eu = Unsqueeze (even, end) st = Concat "
            "<axis = -1> (nu, eu) r = Reshape (st, turned) b = Mul (r, s) o = Add (a, b) y = "
            "Concat <axis = -1> (o, rest)"
        ),
        emits={"com.microsoft::RotaryEmbedding": 1, "Neg": 0},
        constants=(
            "int64[1] five = {4}, int64[1] end = {-1}, int64[5] two = {1, 1, 1, 1, 2}, int64[4] "
            "width = {1, -1, 1, 8}, int64[4] turned = {0, 0, 2, 8}, int64[1] first = {1}, "
            "int64[1] step = {2}, int64[1] eight = {8}, int64[1] zero = {0}, int64[1] half = {4}, "
            "int64[1] last = {3}, int64[1] far = {9223372036854775807}"
        ),
    ),
    declines(
        "float[B,2,S,8] x, float[B,1,S,8] c, float[B,1,S,8] s",
        "float[B,2,S,8] y",
        (
            "a = Mul (x, c) l = Slice (x, zero, half, last) h = Slice (x, half, far, last) n = "
            "Neg (h) r = Concat <axis = -1> (n, l) b = Mul (r, s) y = Add (a, b)"
        ),
        because="table-not-doubled",
        constants=(
            "int64[1] zero = {0}, int64[1] half = {4}, int64[1] last = {3}, int64[1] far = {9223372036854775807}"
        ),
    ),
    declines(
        "float[B,2,S,8] x, float[1,2,S,4] f",
        "float[B,2,S,8] y",
        (
            "f2 = Concat <axis = -1> (f, f) c = Cos (f2) s = Sin (f2) a = Mul (x, c) l = Slice "
            "(x, zero, half, last) h = Slice (x, half, far, last) n = Neg (h) r = Concat <axis = "
            "-1> (n, l) b = Mul (r, s) y = Add (a, b)"
        ),
        because="table-shape",
        constants=(
            "int64[1] zero = {0}, int64[1] half = {4}, int64[1] last = {3}, int64[1] far = {9223372036854775807}"
        ),
    ),
)
