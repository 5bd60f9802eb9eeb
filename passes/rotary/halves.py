"""Half-width rotary tables: the expression of a doubled cosine or sine, rebuilt on the half that is not a repeat."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, constant, dims, op_name, scalar
from ..symbols import same_dim

__all__ = ["Half", "Kind", "halved"]

#: How a table repeats: the whole half twice, or every element twice in a row.
Kind = Literal["half", "interleaved"]

_UNARY: Final = frozenset({"Cos", "Sin", "Cast", "Neg", "Identity"})
_BINARY: Final = frozenset({"Add", "Sub", "Mul", "Div"})
_DEPTH: Final = 24


@dataclass(frozen=True, slots=True)
class Half:
    """A recipe for half a table. Axes of size one may come and go: only the order of the elements counts.

    Attributes:
        leaf: A value to read as it is, or None.
        table: A constant, or None.
        whole: The constant value that it is half of.
        node: The node to repeat over ``parts``, or None.
        parts: Recipes of its inputs.
        exact: Whether the half has the shape of the whole but for its last axis; if not, axes of size one
            differ and it must not be broadcast.
    """

    leaf: ir.Value | None = None
    table: np.ndarray | None = None
    whole: ir.Value | None = None
    node: ir.Node | None = None
    parts: tuple[Half, ...] = ()
    exact: bool = True

    def build(self, g: Builder) -> ir.Value:
        """Make the nodes."""
        if self.leaf is not None:
            return self.leaf
        if self.table is not None:
            value = g.const(self.table)
            for known in (value, self.whole):
                if known is not None:
                    g.relies_on(known)
            return value
        assert self.node is not None
        inputs = [part.build(g) for part in self.parts]
        dtype = self.node.outputs[0].dtype
        kept = {k: a.value for k, a in self.node.attributes.items()}
        return g.op(self.node.op_type, *inputs, dtype=dtype, **kept)


def halved(value: ir.Value, kind: Kind, depth: int = 0) -> Half | None:
    """The recipe for half of a table whose last axis repeats, or None when the repetition is not proven."""
    shape = dims(value)
    if depth > _DEPTH or not shape or not isinstance(shape[-1], int) or shape[-1] % 2:
        return None
    array = constant(value)
    if array is not None:
        return _half_of_constant(value, array, kind)
    node = value.producer()
    if node is None:
        return None
    for step in _STEPS:
        found = step(node, shape[-1], kind, depth + 1)
        if found is not None:
            return found
    return None


def _half_of_constant(value: ir.Value, array: np.ndarray, kind: Kind) -> Half | None:
    half = array.shape[-1] // 2
    first, second = (array[..., :half], array[..., half:]) if kind == "half" else (array[..., 0::2], array[..., 1::2])
    return Half(table=np.ascontiguousarray(first), whole=value) if np.array_equal(first, second) else None


def _doubled(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    """Concat(f, f)."""
    if kind != "half" or op_name(node) != "Concat" or len(node.inputs) != 2 or not _along_last(node):
        return None
    left, right = node.inputs
    return Half(leaf=left) if left is not None and left is right else None


def _repeated(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    """Reshape over a last axis of two equal elements: Expand of a new axis, or Concat of two new axes."""
    if kind != "interleaved" or op_name(node) != "Reshape" or node.inputs[0] is None:
        return None
    pairs = node.inputs[0]
    shape, inner = dims(pairs), pairs.producer()
    if inner is None or not shape or shape[-1] != 2 or len(shape) < 2 or shape[-2] != width // 2:
        return None
    if op_name(inner) == "Concat" and len(inner.inputs) == 2 and _along_last(inner):
        left, right = inner.inputs
        single = left if left is right else None
    elif op_name(inner) == "Expand":
        single = inner.inputs[0]
        before = dims(single)
        if before is None or len(before) != len(shape) or not _equal_but_last(single, pairs):
            return None
    else:
        return None
    narrow = dims(single)
    return Half(leaf=single, exact=False) if narrow is not None and narrow[-1] == 1 else None


def _equal_but_last(left: ir.Value | None, right: ir.Value) -> bool:
    assert left is not None and left.shape is not None and right.shape is not None
    return all(same_dim(a, b) for a, b in zip(list(left.shape)[:-1], list(right.shape)[:-1], strict=True))


def _indexed(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    """Gather along the last axis with the indices of a repetition."""
    source = node.inputs[0] if node.inputs else None
    shape = dims(source)
    if op_name(node) != "Gather" or source is None or not shape or shape[-1] != width // 2:
        return None
    if attribute(node, "axis", 0) not in (-1, len(shape) - 1):
        return None
    indices = constant(node.inputs[1])
    half = np.arange(width // 2)
    wanted = np.tile(half, 2) if kind == "half" else np.repeat(half, 2)
    return Half(leaf=source) if indices is not None and np.array_equal(indices, wanted) else None


def _unary(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    if op_name(node) not in _UNARY or node.inputs[0] is None:
        return None
    part = halved(node.inputs[0], kind, depth)
    return None if part is None else Half(node=node, parts=(part,), exact=part.exact)


def _binary(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    """Elementwise with an operand that does not vary along the last axis, or repeats as well."""
    if op_name(node) not in _BINARY:
        return None
    parts = []
    shapes = [dims(v) for v in node.inputs]
    if any(s is None for s in shapes):
        return None
    for value, shape in zip(node.inputs, shapes, strict=True):
        assert value is not None
        flat = not shape or shape[-1] == 1
        part = Half(leaf=value) if flat else halved(value, kind, depth)
        if part is None:
            return None
        parts.append(part)
    exact = all(part.exact for part in parts)
    if not exact and not any(scalar(v) is not None for v in node.inputs):
        return None
    return Half(node=node, parts=tuple(parts), exact=exact)


def _reshaped(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    """Axes of size one come or go before the last axis: the order of the elements stays."""
    if op_name(node) not in ("Unsqueeze", "Squeeze", "Reshape") or node.inputs[0] is None:
        return None
    shape = dims(node.inputs[0])
    if not shape or shape[-1] != width:
        return None
    part = halved(node.inputs[0], kind, depth)
    return None if part is None else dataclasses.replace(part, exact=False)


def _rows(node: ir.Node, width: int, kind: Kind, depth: int) -> Half | None:
    """Slice or Gather of whole rows of a table."""
    source = node.inputs[0] if node.inputs else None
    shape = dims(source)
    if source is None or not shape or shape[-1] != width:
        return None
    rank = len(shape)
    if op_name(node) == "Gather":
        whole = attribute(node, "axis", 0) % rank != rank - 1
    elif op_name(node) == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 else np.arange(rank)
        whole = axes is not None and all(int(a) % rank != rank - 1 for a in axes)
    else:
        return None
    part = halved(source, kind, depth) if whole else None
    if part is None or not part.exact:
        return None
    rest = tuple(Half(leaf=v) for v in node.inputs[1:] if v is not None)
    return Half(node=node, parts=(part, *rest))


def _along_last(node: ir.Node) -> bool:
    rank = len(dims(node.outputs[0]) or ())
    return bool(rank) and attribute(node, "axis", 0) in (-1, rank - 1)


_Step = Callable[[ir.Node, int, Kind, int], "Half | None"]
_STEPS: Final[Sequence[_Step]] = (_doubled, _repeated, _indexed, _unary, _binary, _reshaped, _rows)
