"""How each operator shapes its first output: one function an operator family, over symbolic dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import onnx_ir as ir

from ...custom_ops import DOMAIN, mixture_of_experts, skip_normalization
from ..graph import attribute
from ..letters import letters_of
from ..look import axes_of
from ..symbols import at_least, ratio, same_dim

__all__ = ["SHAPES", "Dims", "Rule", "Vectors", "dims_of", "is_unknown", "parts_of_split", "table"]

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


def _einsum(p: Vectors, node: ir.Node) -> Dims | None:
    letters = letters_of(node)
    if letters is None:
        return None
    sizes: dict[str, Dims] = {}
    for term, value in zip(letters[:-1], node.inputs, strict=True):
        for letter, dim in zip(term, dims_of(value), strict=True):
            sizes.setdefault(letter, []).append(dim)
    return [_joint(sizes[letter]) for letter in letters[-1]]


def _gemm(p: Vectors, node: ir.Node) -> Dims:
    left, right = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    rows = left[1] if attribute(node, "transA", 0) else left[0]
    return [rows, right[0] if attribute(node, "transB", 0) else right[1]]


def _grouped(p: Vectors, node: ir.Node) -> Dims:
    rows, weight = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    return [rows[0], weight[1] if attribute(node, "transposed", 0) else weight[2]]


def _fused_product(p: Vectors, node: ir.Node) -> Dims | None:
    """A MatMul that may take the last two axes of an operand the other way round; of batch axes nothing is said."""
    left, right = dims_of(node.inputs[0]), dims_of(node.inputs[1])
    if min(len(left), len(right)) < 2 or attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return None
    rows = left[-1] if attribute(node, "transA", 0) else left[-2]
    columns = right[-2] if attribute(node, "transB", 0) else right[-1]
    rank = max(len(left), len(right))
    heads = [[1] * (rank - len(s)) + s[:-2] for s in (left, right)]
    return [*(_joint(list(pair)) for pair in zip(*heads, strict=True)), rows, columns]


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
    left, under = list(source), []
    for dim in rest:
        match = next((i for i, d in enumerate(left) if same_dim(d, dim)), None)
        if match is None:
            under.append(dim)
        else:
            left.pop(match)
    if any(is_unknown(d) for d in (*left, *under)):
        return None
    symbols = [d for d in left if not isinstance(d, int)]
    numbers = [math.prod(d for d in side if isinstance(d, int)) for side in (left, under)]
    if len(symbols) == 1 and numbers[0] == numbers[1] and all(isinstance(d, int) for d in under):
        return symbols[0]  # whatever its name is
    return ratio(left, under)


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
    result[axis] = _total(*sizes)
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


def _or_unknown(rule: Callable[..., Any]) -> Callable[..., Any]:
    """None where a dimension has a name that nothing can be computed with ("seq len", "/layer/Add_d0")."""

    def computed(*dims: Any) -> Any:
        try:
            return rule(*dims)
        except ValueError:
            return None

    return computed


@_or_unknown
def _total(*sizes: Any) -> Any:
    wide = [s for s in sizes if not (isinstance(s, int) and s == 0)]
    if any(map(is_unknown, wide)):
        return None
    return sum(wide[1:], wide[0]) if wide else 0


@_or_unknown
def _sliced(dim: Any, start: Any, end: Any, step: Any) -> Any:
    """The length of a slice: exact, or None where it is not certain what is cut off."""
    if not isinstance(step, int) or step < 1 or is_unknown(dim):
        return None
    if all(isinstance(d, int) for d in (dim, start, end)):
        return len(range(*slice(start, end, step).indices(dim)))
    first, last = _place(dim, start), _place(dim, end)
    if first is None or last is None or not at_least(last, first):
        return None
    whole = last if first == 0 else last - first
    return whole if step == 1 else (whole + (step - 1)) // step


def _place(dim: Any, index: Any) -> Any:
    """Where a slice of an axis starts or ends, from 0 to the length of the axis; None when it is not certain."""
    if is_unknown(index):
        return None
    if isinstance(index, int) and index < 0:
        return dim + index if at_least(dim, -index) else None
    if at_least(index, dim) or (isinstance(index, int) and index >= 1 << 31):
        return dim
    return index if at_least(dim, index) and at_least(index, 0) else None


def _windows(p: Vectors, node: ir.Node) -> Dims | None:
    """A convolution or a pooling: one place for each stride."""
    source = dims_of(node.inputs[0])
    weight = dims_of(node.inputs[1]) if node.op_type == "Conv" else None
    kernel = attribute(node, "kernel_shape") or (weight[2:] if weight is not None else None)
    if kernel is None or attribute(node, "auto_pad", "NOTSET") != "NOTSET" or attribute(node, "ceil_mode", 0):
        return None
    axes = len(kernel)
    ones, zeros = [1] * axes, [0] * (2 * axes)
    strides, spread = attribute(node, "strides") or ones, attribute(node, "dilations") or ones
    pads = attribute(node, "pads") or zeros
    places = [
        _places(d, pads[n] + pads[n + axes] - (kernel[n] - 1) * spread[n] - 1, strides[n])
        for n, d in enumerate(source[2:])
    ]
    return [source[0], source[1] if weight is None else weight[0], *places]


@_or_unknown
def _places(dim: Any, more: int, stride: int) -> Any:
    if is_unknown(dim):
        return None
    last = dim + (more + stride) if more + stride else dim
    return last if stride == 1 else last // stride


def _padded(p: Vectors, node: ir.Node) -> Dims | None:
    source, pads = dims_of(node.inputs[0]), p.vector(node.inputs[1])
    if pads is None or len(pads) != 2 * len(source) or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return None
    return [_total(d, pads[n], pads[n + len(source)]) for n, d in enumerate(source)]


def _gathered_elements(p: Vectors, node: ir.Node) -> Dims:
    return dims_of(node.inputs[1])


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
    if start is None or limit is None or delta != [1]:
        return None
    return limit if start == [0] else [limit[0] - start[0]] if at_least(limit[0], start[0]) else None


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


def parts_of_split(p: Vectors, node: ir.Node) -> list[Dims]:
    """The dimensions of each part of a Split."""
    source = dims_of(node.inputs[0])
    axis, count = attribute(node, "axis", 0) % len(source), len(node.outputs)
    sizes = p.vector(node.inputs[1]) if len(node.inputs) > 1 else attribute(node, "split")
    if sizes is None and isinstance(source[axis], int) and source[axis] % count == 0:
        sizes = [source[axis] // count] * count
    known = [None] * count if sizes is None else sizes
    return [[*source[:axis], size, *source[axis + 1 :]] for size in known]


def table(rules: Sequence[tuple[str, Rule]]) -> dict[str, Rule]:
    """Spread rules over the operators they are for, named in one string."""
    return {op: rule for ops, rule in rules for op in ops.split()}


#: Qualified operator name to its rule.
SHAPES: Final = table(
    [
        (
            "Identity Cast Neg Abs Sqrt Reciprocal Exp Log Erf Tanh Sigmoid Relu Gelu IsNaN Not Cos Sin",
            _same,
        ),
        (
            "Softmax LayerNormalization SimplifiedLayerNormalization RMSNormalization RotaryEmbedding Dropout Trilu",
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
        ("MatMul MatMulInteger", _matmul),
        ("DynamicQuantizeLinear QuantizeLinear DequantizeLinear", _same),
        ("com.microsoft::DynamicQuantizeMatMul com.microsoft::MatMulIntegerToFloat", _matmul),
        ("com.microsoft::FusedMatMul", _fused_product),
        ("Gemm", _gemm),
        ("Einsum", _einsum),
        ("com.microsoft::MatMulNBits", _quantized_product),
        ("Transpose", _transpose),
        ("Reshape", _reshape),
        ("Expand", _expand),
        ("Unsqueeze", _unsqueeze),
        ("Squeeze", _squeeze),
        ("Concat", _concat),
        ("Slice", _slice),
        ("Gather", _gather),
        ("GatherElements", _gathered_elements),
        ("Conv AveragePool MaxPool", _windows),
        ("Pad", _padded),
        ("ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd", _reduce),
        ("Shape", _shape_of),
        ("Range", _range),
        ("ConstantOfShape", _filled),
    ]
)
