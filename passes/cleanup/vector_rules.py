"""What operators do to the small integer vectors that shapes are computed with."""

from __future__ import annotations

from typing import Any, Final

import onnx_ir as ir

from ..graph import attribute
from ..symbols import at_least
from .shape_rules import Dims, Vectors, dims_of, is_unknown, table

__all__ = ["VECTORS"]


def _vector_of_shape(p: Vectors, node: ir.Node) -> Dims | None:
    source = dims_of(node.inputs[0])
    return source[slice(attribute(node, "start", 0), attribute(node, "end"))]


def _vector_same(p: Vectors, node: ir.Node) -> Dims | None:
    return p.vector(node.inputs[0])


def _vector_concat(p: Vectors, node: ir.Node) -> Dims | None:
    parts = [p.vector(v) for v in node.inputs]
    return None if any(part is None for part in parts) else [d for part in parts for d in part or []]


def _vector_gather(p: Vectors, node: ir.Node) -> Dims | None:
    source, indices = p.vector(node.inputs[0]), p.vector(node.inputs[1])
    return None if source is None or indices is None else [source[i] for i in indices]


def _vector_slice(p: Vectors, node: ir.Node) -> Dims | None:
    source, starts, ends = (p.vector(v) for v in node.inputs[:3])
    step = p.vector(node.inputs[4])[0] if len(node.inputs) > 4 and node.inputs[4] is not None else 1  # type: ignore[index]
    return None if source is None or starts is None or ends is None else source[starts[0] : ends[0] : step]


def _vector_arithmetic(p: Vectors, node: ir.Node) -> Dims | None:
    left, right = p.vector(node.inputs[0]), p.vector(node.inputs[1])
    if left is None or right is None or (1 not in (len(left), len(right)) and len(left) != len(right)):
        return None
    count = max(len(left), len(right))
    left, right = (v * count if len(v) == 1 else v for v in (left, right))
    return [_combine(node.op_type, a, b) for a, b in zip(left, right, strict=True)]


def _combine(op: str, a: Any, b: Any) -> Any:
    if is_unknown(a) or is_unknown(b):
        return None
    if op in ("Div", "Mod"):
        if op == "Div" and isinstance(b, int) and b == 1:
            return a
        if not (at_least(a, 0) and at_least(b, 1)):
            return None  # below 0 the operator rounds another way
        return a // b if op == "Div" else a % b
    return a + b if op == "Add" else a - b if op == "Sub" else a * b


#: Qualified operator name to its rule.
VECTORS: Final = table(
    [
        ("Shape", _vector_of_shape),
        ("Identity Cast Squeeze Unsqueeze Reshape", _vector_same),
        ("Concat", _vector_concat),
        ("Gather", _vector_gather),
        ("Slice", _vector_slice),
        ("Add Sub Mul Div Mod", _vector_arithmetic),
    ]
)
