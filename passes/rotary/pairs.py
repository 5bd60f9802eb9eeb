"""ROT003: rotary embedding as a product of complex numbers, real and imaginary parts side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, dims, producer, scalar
from ..look import axes_of, no_match, past_identity, require
from ..rule import Context, Declined, Replacement, Rule
from .rotation import part_of
from .tables import Axes, align, positions

__all__ = ["RotaryPairs"]


@dataclass(frozen=True, slots=True)
class _Element:
    """The first (0) or second (1) of each pair of ``source``; ``kept`` when it has an axis of one for the pair."""

    source: ir.Value
    place: int
    kept: bool


@dataclass(frozen=True, slots=True)
class _Spelling:
    source: ir.Value
    cos: ir.Value
    sin: ir.Value
    kept: bool


@dataclass(frozen=True, slots=True)
class _Facts:
    source: ir.Value
    cos: ir.Value
    sin: ir.Value
    output: ir.Value
    shape: tuple[Any, ...]
    width: int
    heads: int
    axes: Axes
    dtype: ir.DataType


class RotaryPairs(Rule):
    """Rotary position embedding as complex numbers.

    ## What it finds
    ``stack(a * cos - b * sin, a * sin + b * cos)`` over the pairs (a, b) of a rank-4 tensor: what
    ``torch.view_as_complex(x) * freqs`` is exported to, and what code with real and imaginary parts writes. The pairs
    may be an axis of two, split, sliced or picked, or every second element.

    ## Why
    Eleven nodes and seven copies of queries and keys become one pass.

    ## Before -> After
    ``Slice, Slice, Mul x 4, Sub, Add, Concat`` -> ``com.microsoft::RotaryEmbedding`` with ``interleaved``.

    ## When it declines
    * ``table-shape``: a table varies by head or does not line up with the tensor.
    * ``shape-unknown``: head count or head size is no number.
    * ``dtype``: the target has no kernel for the element type.

    ## Numerics
    ROUNDING: the same products and one sum.

    ## References
    Su et al., RoFormer, 2021; Touvron et al., LLaMA, 2023. onnxruntime contrib operator RotaryEmbedding.
    """

    code: ClassVar[str] = "ROT003"
    name: ClassVar[str] = "rotary-pairs"
    anchors: ClassVar[frozenset[str]] = frozenset({"Concat"})
    emits: ClassVar[tuple[str, ...]] = ("com.microsoft::RotaryEmbedding",)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`RotaryPairs`."""
        found = None if context.target.portable else _spelling(node)
        if found is None:
            raise no_match()
        shape = dims(found.source)
        assert shape is not None and found.source.shape is not None
        full = list(found.source.shape)
        wide = [*full[:3], 2 * full[3]] if len(full) == 5 and isinstance(full[3], int) else full
        if len(wide) != 4 or not isinstance(wide[3], int):
            raise Declined("shape-unknown", f"expected rank 4 with a known width, found {shape}", at=node)
        whole = ir.Value(name="whole", shape=ir.Shape(wide))
        tables = [_table(v, found.kept) for v in (found.cos, found.sin)]
        axes = [align(whole, table, wide[3] // 2) for table in tables]
        if axes[0] != axes[1]:
            raise Declined("table-shape", "cosine and sine do not have the same shape", at=node)
        heads = wide[axes[0].heads]
        if not isinstance(heads, int):
            raise Declined("shape-unknown", "the number of heads is not known", at=node)
        dtype = require(found.source.dtype, "RotaryEmbedding", context.target, node)
        if found.cos.dtype != dtype or found.sin.dtype != dtype:
            raise Declined("dtype", "the tables have another type than the tensor", at=node)
        return _Facts(found.source, found.cos, found.sin, node.outputs[0], tuple(wide), wide[3], heads, axes[0], dtype)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`RotaryPairs`."""
        merged = facts.axes.heads == 2
        inner = [0, 0, facts.heads * facts.width] if merged else [0, 0, 0, facts.width]
        shape = [*facts.shape[:2], inner[2]] if merged else list(facts.shape)
        x = g.op("Reshape", facts.source, g.const(np.array(inner, np.int64)), dtype=facts.dtype, shape=shape)
        rotated = g.op(
            "com.microsoft::RotaryEmbedding",
            x,
            positions(g, facts.source, facts.axes),
            *(_flat(g, table, facts.width // 2) for table in (facts.cos, facts.sin)),
            interleaved=1,
            num_heads=facts.heads if merged else None,
            dtype=facts.dtype,
            shape=shape,
        )
        pairs = [0, 0, facts.heads if merged else 0, facts.width // 2, 2]
        made = g.op("Reshape", rotated, g.const(np.array(pairs, np.int64)), dtype=facts.dtype, shape=facts.output.shape)
        return Replacement(old=[facts.output], new=[made])


def _flat(g: Builder, table: ir.Value, width: int) -> ir.Value:
    shape = g.const(np.array([-1, width], np.int64))
    return g.op("Reshape", table, shape, dtype=table.dtype, shape=[None, width])


def _table(value: ir.Value, kept: bool) -> ir.Value:
    """A table without the axis of one that stands for the pair."""
    shape = list(value.shape) if value.shape is not None else []
    if kept and (not shape or shape[-1] != 1):
        raise Declined("table-shape", f"the table {value.shape} has no axis of one for the pairs", at=value)
    return ir.Value(name=value.name, shape=ir.Shape(shape[:-1] if kept else shape))


def _spelling(node: ir.Node) -> _Spelling | None:
    rank = len(dims(node.outputs[0]) or ())
    if len(node.inputs) != 2 or rank != 5 or attribute(node, "axis", 0) not in (-1, rank - 1):
        return None
    ends = [_unwrapped(v, rank) for v in node.inputs]
    minus, plus = producer(ends[0], "Sub"), producer(ends[1], "Add")
    if minus is None or plus is None:
        return None
    for (a, cos), (b, sin) in _products(minus):
        first, second = _element(a), _element(b)
        if first is None or second is None or first.source is not second.source or first.kept != second.kept:
            continue
        if (first.place, second.place) == (0, 1) and _sums(plus, {id(a), id(sin)}, {id(b), id(cos)}):
            return _Spelling(first.source, cos, sin, first.kept)
    return None


def _unwrapped(value: ir.Value | None, rank: int) -> ir.Value | None:
    """The value behind a new last axis, if one was added."""
    node = producer(None if value is None else past_identity(value), "Unsqueeze")
    if node is None or axes_of(node) not in ((-1,), (rank - 1,)):
        return None if value is None else past_identity(value)
    return None if node.inputs[0] is None else past_identity(node.inputs[0])


Pair = tuple[ir.Value, ir.Value]


def _products(minus: ir.Node) -> Iterator[tuple[Pair, Pair]]:
    """The operands of both products of a difference, in every order."""
    left, right = (producer(v, "Mul") for v in minus.inputs)
    if left is None or right is None or None in (*left.inputs, *right.inputs):
        return
    for first in (tuple(left.inputs), tuple(left.inputs)[::-1]):
        for second in (tuple(right.inputs), tuple(right.inputs)[::-1]):
            yield first, second  # type: ignore[misc]


def _sums(plus: ir.Node, *wanted: set[int]) -> bool:
    """Whether a sum adds the products of these operands, in either order."""
    products = [producer(v, "Mul") for v in plus.inputs]
    operands = [set() if p is None else {id(v) for v in p.inputs} for p in products]
    return operands in (list(wanted), list(wanted)[::-1])


def _element(value: ir.Value) -> _Element | None:
    """Which element of its pairs a value holds."""
    value = past_identity(value)
    squeezed = producer(value, "Squeeze")
    if squeezed is not None and squeezed.inputs[0] is not None:
        inner = _element(squeezed.inputs[0])
        rank = len(dims(squeezed.inputs[0]) or ())
        dropped = inner is not None and inner.kept and axes_of(squeezed) in ((-1,), (rank - 1,))
        return _Element(inner.source, inner.place, False) if dropped and inner is not None else None
    picked = producer(value, "Gather")
    if picked is not None:
        return _picked(picked)
    part = part_of(value)
    if part is None or part.source.shape is None:
        return None
    size = part.source.shape[-1]
    if len(part.source.shape) == 5 and size == 2 and part.stop == part.start + 1:
        return _Element(past_identity(part.source), part.start, True)
    if len(part.source.shape) == 4 and isinstance(size, int) and size % 2 == 0 and part.step == 2 and part.start < 2:
        return _Element(past_identity(part.source), part.start, False) if part.stop >= size - 1 + part.start else None
    return None


def _picked(node: ir.Node) -> _Element | None:
    """Element 0 or 1 along an axis of two at the end."""
    source = node.inputs[0]
    shape, index = dims(source), scalar(node.inputs[1])
    if source is None or shape is None or len(shape) != 5 or shape[-1] != 2 or len(dims(node.outputs[0]) or ()) != 4:
        return None
    if attribute(node, "axis", 0) not in (-1, 4) or index not in (0, 1, -1, -2):
        return None
    return _Element(past_identity(source), int(index) % 2, False)


_ONES = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] last = {-1}"
_COMPLEX = (
    "a = Slice (x, zero, one, last) b = Slice (x, one, two, last) c = Slice (f, zero, one, last) "
    "s = Slice (f, one, two, last) ac = Mul (a, c) bs = Mul (b, s) as = Mul (a, s) bc = Mul (b, c) "
    "re = Sub (ac, bs) im = Add (as, bc) y = Concat <axis = -1> (re, im)"
)
RotaryPairs.examples = (
    fires(
        "float[B,S,2,4,2] x, float[1,S,1,4,2] f",
        "float[B,S,2,4,2] y",
        _COMPLEX,
        emits={"com.microsoft::RotaryEmbedding": 1, "Sub": 0},
        constants=_ONES,
    ),
    fires(
        "float[B,2,S,8] x, float[B,1,S,4] c, float[B,1,S,4] s",
        "float[B,2,S,4,2] y",
        (
            "a = Slice (x, zero, far, end, step) b = Slice (x, one, far, end, step) ac = Mul (c, a) bs = Mul (b, s) "
            "as = Mul (a, s) bc = Mul (b, c) re = Sub (ac, bs) im = Add (bc, as) ru = Unsqueeze (re, last) "
            "iu = Unsqueeze (im, last) y = Concat <axis = -1> (ru, iu)"
        ),
        emits={"com.microsoft::RotaryEmbedding": 1, "Sub": 0},
        constants=_ONES + ", int64[1] far = {9223372036854775807}, int64[1] end = {3}, int64[1] step = {2}",
    ),
    declines(
        "float[B,S,2,4,2] x, float[1,S,2,4,2] f",
        "float[B,S,2,4,2] y",
        _COMPLEX,
        because="table-shape",
        constants=_ONES,
    ),
    declines(
        "float[B,S,N,4,2] x, float[1,S,1,4,2] f",
        "float[B,S,N,4,2] y",
        _COMPLEX,
        because="shape-unknown",
        constants=_ONES,
    ),
)
