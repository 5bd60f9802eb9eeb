"""Attention nodes that another tool made, read as the parts of a canonical attention."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from .. import canonical
from ..graph import Builder, attribute, dims, op_name
from ..rule import Context, Declined, Replacement, Rule, Safety
from ..symbols import broadcast, length
from .lower import best_first
from .site import study

__all__ = [
    "CANONICAL",
    "GivenSite",
    "Parts",
    "added",
    "below_lengths",
    "filled",
    "joined",
    "kept",
    "part",
    "past_and",
    "places",
    "scale_of",
    "split_heads",
    "width",
]

CANONICAL: Final = f"{canonical.DOMAIN}::{canonical.NAME}"
_INT64: Final = ir.DataType.INT64


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a canonical attention is made of; query, key and value are (B, N, S, H)."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None = None
    bias: ir.Value | None = None
    sink: ir.Value | None = None
    scale: float
    causal: str = "none"
    softcap: float = 0.0
    empty_rows: str = "as_written"


class GivenSite(Rule):
    """A node that is a whole attention already; it is a site to lower anew, where that gives another node."""

    safety = Safety.ROUNDING
    emits = (CANONICAL,)

    @abc.abstractmethod
    def read(self, node: ir.Node) -> Any:
        """The facts of a node, a frozen dataclass with the node as ``node``.

        Raises:
            Declined: for what a canonical attention cannot say.
        """

    @abc.abstractmethod
    def parts(self, facts: Any, g: Builder) -> Parts:
        """The parts of the attention, in nodes of ``g``."""

    def extra(self, facts: Any, parts: Parts, g: Builder) -> Sequence[tuple[ir.Value, ir.Value]]:
        """Further results of the node and what takes their place."""
        return ()

    def examine(self, node: ir.Node, context: Context) -> Any:
        facts = self.read(node)
        assert node.graph is not None
        trial = Builder(node.graph, prefix=self.name, like=node, root=context.model.graph)
        try:
            made = _call(trial, self.parts(facts, trial)).producer()
            assert made is not None
            _refuse_same(made, node, context)
        finally:
            trial.discard()
        return facts

    def build(self, facts: Any, g: Builder) -> Replacement:
        parts, node = self.parts(facts, g), facts.node
        extra = self.extra(facts, parts, g)
        made = _call(g, parts)
        result = made if len(dims(node.inputs[0]) or ()) == 4 else joined(g, made)
        old, new = [node.outputs[0], *(old for old, _ in extra)], [result, *(new for _, new in extra)]
        return Replacement(old=old, new=new, twin=True)


def _call(g: Builder, parts: Parts) -> ir.Value:
    assert parts.query.shape is not None and parts.value.shape is not None
    return g.op(
        CANONICAL,
        parts.query,
        parts.key,
        parts.value,
        parts.mask,
        parts.bias,
        parts.sink,
        dtype=parts.query.dtype,
        shape=[*list(parts.query.shape)[:3], parts.value.shape[3]],
        scale=parts.scale,
        causal=parts.causal,
        softcap=parts.softcap or None,
        empty_rows=parts.empty_rows,
        origin="op",
    )


def _refuse_same(made: ir.Node, given: ir.Node, context: Context) -> None:
    """Keep a node where lowering would give it again, or nothing.

    Raises:
        Declined: "already-best" when the target's best operator is the given one, "no-better-node" when none fits.
    """
    try:
        site = study(made)
    except Declined as no:
        raise Declined(no.reason, no.detail, at=given) from no
    refusals: list[Declined] = []
    for rule in best_first(context.target, site.kinds(), site):
        try:
            rule.examine(made, context)
        except Declined as no:
            refusals.append(no)
            continue
        if rule.emits[0] == op_name(given):
            raise Declined("already-best", "the operator it is in is the best of this target", at=given)
        return
    why = f"{refusals[0].reason}: {refusals[0].detail}" if refusals else "this target has none"
    raise Declined("no-better-node", f"no other operator takes it ({why})", at=given)


def width(value: ir.Value | None, at: ir.Node) -> int:
    """The fixed size of the last axis.

    Raises:
        Declined: "unknown-heads" when it is not known.
    """
    size = (dims(value) or (None,))[-1]
    if not isinstance(size, int):
        raise Declined("unknown-heads", f"the width of '{None if value is None else value.name}' is not fixed", at=at)
    return size


def split_heads(g: Builder, value: ir.Value, heads: int) -> ir.Value:
    """(B, S, N * H) to (B, N, S, H); four-dimensional values have their heads already."""
    assert value.shape is not None
    if len(value.shape) == 4:
        return value
    batch, rows, wide = value.shape
    assert isinstance(wide, int)
    size = wide // heads
    split = g.op("Reshape", value, g.const(np.array([0, 0, heads, size], np.int64)), shape=[batch, rows, heads, size])
    return g.op("Transpose", split, perm=[0, 2, 1, 3], shape=[batch, heads, rows, size])


def joined(g: Builder, value: ir.Value) -> ir.Value:
    """(B, N, S, H) to (B, S, N * H)."""
    assert value.shape is not None
    batch, heads, rows, size = value.shape
    assert isinstance(heads, int) and isinstance(size, int)
    moved = g.op("Transpose", value, perm=[0, 2, 1, 3], shape=[batch, rows, heads, size])
    flat = g.const(np.array([0, 0, heads * size], np.int64))
    return g.op("Reshape", moved, flat, dtype=value.dtype, shape=[batch, rows, heads * size])


def part(g: Builder, value: ir.Value, start: int, stop: int) -> ir.Value:
    """Places ``start`` to ``stop`` of the last axis."""
    assert value.shape is not None
    bounds = [g.const(np.array([n], np.int64)) for n in (start, stop, -1)]
    return g.op("Slice", value, *bounds, dtype=value.dtype, shape=[*list(value.shape)[:-1], stop - start])


def past_and(g: Builder, past: ir.Value | None, value: ir.Value) -> ir.Value:
    """Keys or values of the past, then those of now, along the rows."""
    if past is None:
        return value
    assert value.shape is not None
    rows = None if past.shape is None else _total(past.shape[2], value.shape[2])
    return g.op("Concat", past, value, axis=2, dtype=value.dtype, shape=[*list(value.shape)[:2], rows, value.shape[3]])


def _total(before: Any, now: Any) -> Any:
    """The sum of two dimensions, where both have a name to say it with."""
    if any(d is None or (not isinstance(d, int) and d.value is None) for d in (before, now)):
        return None
    try:
        return before + now
    except ValueError:  # a name that is no expression
        return None


def kept(g: Builder, node: ir.Node, parts: Parts) -> list[tuple[ir.Value, ir.Value]]:
    """The second and third results of a node, its keys and values, and what takes their place."""
    pairs = zip(node.outputs[1:3], (parts.key, parts.value), strict=False)
    read = [(old, new) for old, new in pairs if old.uses() or old.is_graph_output()]
    return [(old, g.op("Identity", new, dtype=new.dtype, shape=new.shape)) for old, new in read]


def added(g: Builder, left: ir.Value | None, right: ir.Value | None) -> ir.Value | None:
    """The sum of what there is."""
    if left is None or right is None:
        return left if right is None else right
    return g.op("Add", left, right, dtype=left.dtype, shape=broadcast(left, right))


def filled(g: Builder, keep: ir.Value, fill: float, like: ir.Value) -> ir.Value:
    """0 where a boolean mask keeps, a number where it does not: what a kernel adds to the scores."""
    zero, low = g.scalar(0.0, like=like), g.scalar(fill, like=like)
    return g.op("Where", keep, zero, low, dtype=like.dtype, shape=keep.shape)


def places(g: Builder, value: ir.Value, axis: int, shape: Sequence[int]) -> ir.Value:
    """0, 1, 2, ... along an axis of a value, with axes of 1 beside it as ``shape`` (a -1 among ones) says."""
    assert value.shape is not None
    zero, one = g.const(np.asarray(0, np.int64)), g.const(np.asarray(1, np.int64))
    size = value.shape[axis]
    limit = g.op("Squeeze", length(g, value, axis), dtype=_INT64, shape=[])
    line = g.op("Range", zero, limit, one, dtype=_INT64, shape=[size])
    wide = [size if n == -1 else n for n in shape]
    axes = g.const(np.array([i for i, n in enumerate(shape) if n != -1], np.int64))
    return g.op("Unsqueeze", line, axes, dtype=_INT64, shape=wide)


def below_lengths(g: Builder, lengths: ir.Value, key: ir.Value, *, more: int = 0) -> ir.Value:
    """Which keys of (B, N, T, H) lie below a length a row (plus ``more``), (B, 1, 1, T)."""
    assert lengths.shape is not None and key.shape is not None
    batch = lengths.shape[0]
    wide = g.op("Cast", lengths, to=_INT64, dtype=_INT64, shape=lengths.shape)
    if more:
        wide = g.op("Add", wide, g.const(np.array([more], np.int64)), dtype=_INT64, shape=lengths.shape)
    axes = g.const(np.array([1, 2, 3], np.int64))
    column = g.op("Unsqueeze", wide, axes, dtype=_INT64, shape=[batch, 1, 1, 1])
    keys = places(g, key, 2, (1, 1, 1, -1))
    return g.op("Less", keys, column, dtype=ir.DataType.BOOL, shape=[batch, 1, 1, key.shape[2]])


def scale_of(node: ir.Node, head_size: int) -> float:
    """The factor on the scores: the attribute, or one over the root of the head size."""
    return float(attribute(node, "scale", 0.0)) or head_size**-0.5
