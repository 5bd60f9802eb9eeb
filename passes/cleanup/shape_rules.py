"""How each operator shapes its first output: one function an operator family, over symbolic dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import onnx_ir as ir

from ...custom_ops import DOMAIN, mixture_of_experts, skip_normalization
from ..graph import attribute
from ..look import axes_of
from ..symbols import same_dim

__all__ = ["SHAPES", "Dims", "Rule", "Vectors", "dims_of", "is_unknown", "table"]

Dims = list[Any]


class Vectors(Protocol):
    """What a shape rule may ask: the elements of an integer vector."""

    def vector(self, value: ir.Value | None) -> Dims | None:
        """The elements, numbers or symbols, or None."""


Rule = Callable[[Vectors, ir.Node], "Dims | None"]


def is_unknown(dim: Any) -> bool:
    """Whether a dimension is neither a number nor a symbol."""
    return not isinstance(dim, int) and (dim is None or dim.value is None)


def dims_of(value: ir.Value | None) -> Dims:
    """The dimensions of a value. Raises ValueError when the rank is unknown."""
    if value is None or value.shape is None:
        raise ValueError("unknown rank")
    return list(value.shape)


def _same(p: Vectors, node: ir.Node) -> Dims:
    return dims_of(node.inputs[0])


def _broadcast(p: Vectors, node: ir.Node) -> Dims:
    shapes = [dims_of(v) for v in node.inputs]
    rank = max(map(len, shapes))
    padded = [[1] * (rank - len(s)) + s for s in shapes]
    return [_joint(list(column)) for column in zip(*padded, strict=True)]


def _joint(sizes: Dims) -> Any:
    """The size several broadcast to: the one that is not 1, when the others agree with it."""
    wide = [s for s in sizes if s != 1]
    if not wide:
        return 1
    numbers = [s for s in wide if isinstance(s, int)]
    if numbers:
        return numbers[0]
    return wide[0] if all(same_dim(wide[0], s) for s in wide) else None


def _matmul(p: Vectors, node: ir.Node) -> Dims | None:
    left, right = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    if len(left) < 2 or len(right) < 2:
        return None
    rank = max(len(left), len(right))
    heads = [[1] * (rank - len(s)) + s[:-2] for s in (left, right)]
    return [_joint(list(pair)) for pair in zip(*heads, strict=True)] + [left[-2], right[-1]]


def _gemm(p: Vectors, node: ir.Node) -> Dims:
    left, right = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    rows = left[1] if attribute(node, "transA", 0) else left[0]
    return [rows, right[0] if attribute(node, "transB", 0) else right[1]]


def _grouped(p: Vectors, node: ir.Node) -> Dims:
    rows, weight = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    return [rows[0], weight[1] if attribute(node, "transposed", 0) else weight[2]]


def _quantized_product(p: Vectors, node: ir.Node) -> Dims:
    return [*dims_of(node.inputs[0])[:-1], int(attribute(node, "N"))]


def _transpose(p: Vectors, node: ir.Node) -> Dims:
    source = dims_of(node.inputs[0])
    perm = attribute(node, "perm") or tuple(reversed(range(len(source))))
    return [source[axis] for axis in perm]


def _reshape(p: Vectors, node: ir.Node) -> Dims | None:
    source, target = dims_of(node.inputs[0]), p.vector(node.inputs[1])
    if target is None:
        return None
    copied = not attribute(node, "allowzero", 0)
    result = [source[i] if copied and isinstance(d, int) and d == 0 else d for i, d in enumerate(target)]
    free = [i for i, d in enumerate(result) if isinstance(d, int) and d == -1]
    if len(free) == 1:
        rest = [d for i, d in enumerate(result) if i != free[0]]
        result[free[0]] = _remaining(source, rest)
    return result


def _remaining(source: Dims, rest: Dims) -> Any:
    """The size that -1 stands for: sizes on both sides cancel, what is left over is the answer."""
    left = [d for d in source if not (isinstance(d, int) and d == 1)]
    divisor = 1
    for dim in rest:
        if isinstance(dim, int):
            divisor *= dim
            continue
        match = next((i for i, d in enumerate(left) if same_dim(d, dim)), None)
        if match is None:
            return None
        left.pop(match)
    number = math.prod(d for d in left if isinstance(d, int))
    symbols = [d for d in left if not isinstance(d, int)]
    if divisor == 0 or number % divisor or any(is_unknown(d) for d in symbols):
        return None
    number //= divisor
    if not symbols:
        return number
    product = symbols[0]
    for symbol in symbols[1:]:
        product = product * symbol
    return product if number == 1 else product * number


def _expand(p: Vectors, node: ir.Node) -> Dims | None:
    source, target = dims_of(node.inputs[0]), p.vector(node.inputs[1])
    if target is None:
        return None
    rank = max(len(source), len(target))
    pair = ([1] * (rank - len(s)) + s for s in (source, target))
    return [_joint(list(both)) for both in zip(*pair, strict=True)]


def _unsqueeze(p: Vectors, node: ir.Node) -> Dims | None:
    source, axes = dims_of(node.inputs[0]), axes_of(node)
    if axes is None:
        return None
    rank = len(source) + len(axes)
    new = {a % rank for a in axes}
    rest = iter(source)
    return [1 if axis in new else next(rest) for axis in range(rank)]


def _squeeze(p: Vectors, node: ir.Node) -> Dims | None:
    source, axes = dims_of(node.inputs[0]), axes_of(node)
    if axes is None:
        return None
    gone = {a % len(source) for a in axes}
    return [d for axis, d in enumerate(source) if axis not in gone]


def _concat(p: Vectors, node: ir.Node) -> Dims:
    shapes = [dims_of(v) for v in node.inputs]
    axis = attribute(node, "axis") % len(shapes[0])
    result = [_joint([s[i] for s in shapes]) for i in range(len(shapes[0]))]
    sizes = [s[axis] for s in shapes]
    result[axis] = sum(sizes) if all(isinstance(s, int) for s in sizes) else None
    return result


def _slice(p: Vectors, node: ir.Node) -> Dims | None:
    source = dims_of(node.inputs[0])
    starts, ends = p.vector(node.inputs[1]), p.vector(node.inputs[2])
    inputs = [*node.inputs, None, None][:5]
    axes, steps = p.vector(inputs[3]), p.vector(inputs[4])
    axes = list(range(len(starts or []))) if inputs[3] is None else axes
    steps = [1] * len(starts or []) if inputs[4] is None else steps
    if starts is None or ends is None or axes is None or steps is None:
        return None
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        source[axis % len(source)] = _sliced(source[axis % len(source)], start, end, step)
    return source


def _sliced(dim: Any, start: Any, end: Any, step: Any) -> Any:
    if not isinstance(start, int) or step != 1:
        return None
    if isinstance(dim, int) and isinstance(end, int):
        return len(range(*slice(start, end).indices(dim)))
    whole = start == 0 and ((isinstance(end, int) and end >= 1 << 31) or same_dim(end, dim))
    return dim if whole else None


def _gather(p: Vectors, node: ir.Node) -> Dims:
    source, indices = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    axis = attribute(node, "axis", 0) % len(source)
    return source[:axis] + indices + source[axis + 1 :]


def _reduce(p: Vectors, node: ir.Node) -> Dims | None:
    source, axes = dims_of(node.inputs[0]), axes_of(node)
    if axes is None:
        return None
    gone = {a % len(source) for a in axes}
    if attribute(node, "keepdims", 1):
        return [1 if axis in gone else d for axis, d in enumerate(source)]
    return [d for axis, d in enumerate(source) if axis not in gone]


def _range(p: Vectors, node: ir.Node) -> Dims | None:
    start, limit, delta = (p.vector(v) for v in node.inputs)
    return limit if start == [0] and delta == [1] else None


def _filled(p: Vectors, node: ir.Node) -> Dims | None:
    return p.vector(node.inputs[0])


def _shape_of(p: Vectors, node: ir.Node) -> Dims:
    low, high, _ = slice(attribute(node, "start", 0), attribute(node, "end")).indices(len(dims_of(node.inputs[0])))
    return [max(high - low, 0)]


def _attention(p: Vectors, node: ir.Node) -> Dims | None:
    """(B, S, N * Hv): the rows of the query, the width of the values of all heads."""
    query, value = dims_of(node.inputs[0]), node.inputs[2] if len(node.inputs) > 2 else None
    if len(query) != 3:
        return None
    heads, shared = attribute(node, "num_heads"), attribute(node, "kv_num_heads")
    if value is None:  # packed into the query
        wide = query[2]
        parts = None if shared is None else heads + 2 * shared
        return [*query[:2], wide // parts * heads if parts and isinstance(wide, int) else None]
    found = dims_of(value)
    wide = found[-1] if len(found) == 3 else None if not isinstance(found[-1], int) else found[-1] * heads
    return [*query[:2], wide // shared * heads if shared and isinstance(wide, int) else wide]


def _packed_attention(p: Vectors, node: ir.Node) -> Dims:
    """(B, S, N * Hv) of an attention with its projection inside."""
    source, weights = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    given, wide = attribute(node, "qkv_hidden_sizes"), weights[-1]
    return [*source[:2], given[2] if given else wide // 3 if isinstance(wide, int) else None]


def table(rules: Sequence[tuple[str, Rule]]) -> dict[str, Rule]:
    """Spread rules over the operators they are for, named in one string."""
    return {op: rule for ops, rule in rules for op in ops.split()}


#: Qualified operator name to its rule.
SHAPES: Final = table(
    [
        (
            "Identity Cast Neg Abs Sqrt Reciprocal Exp Log Erf Tanh Sigmoid Relu Gelu Softmax IsNaN Not Cos Sin",
            _same,
        ),
        (
            "LayerNormalization SimplifiedLayerNormalization RMSNormalization RotaryEmbedding Dropout Trilu",
            _same,
        ),
        ("com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization", _same),
        (" ".join(f"{DOMAIN}::{s.op_type}" for s in skip_normalization.signatures()), _same),
        (" ".join(f"{DOMAIN}::{s.op_type}" for s in mixture_of_experts.signatures()), _same),
        ("deployml.canonical::GroupedMatMul", _grouped),
        (
            "com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::QuickGelu",
            _same,
        ),
        ("com.microsoft::RotaryEmbedding", _same),
        ("com.microsoft::MultiHeadAttention com.microsoft::GroupQueryAttention", _attention),
        ("com.microsoft::Attention", _packed_attention),
        (
            "Add Sum Sub Mul Div Pow Where Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Min Max Mod",
            _broadcast,
        ),
        ("MatMul", _matmul),
        ("Gemm", _gemm),
        ("com.microsoft::MatMulNBits", _quantized_product),
        ("Transpose", _transpose),
        ("Reshape", _reshape),
        ("Expand", _expand),
        ("Unsqueeze", _unsqueeze),
        ("Squeeze", _squeeze),
        ("Concat", _concat),
        ("Slice", _slice),
        ("Gather", _gather),
        ("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd", _reduce),
        ("Shape", _shape_of),
        ("Range", _range),
        ("ConstantOfShape", _filled),
    ]
)
