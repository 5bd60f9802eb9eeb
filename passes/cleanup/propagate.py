"""Forward propagation of symbolic shapes and of the small integer vectors that shapes are computed with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import onnx_ir as ir

from ..graph import attribute, constant, op_name
from ..look import axes_of, cast_target
from ..symbols import same_dim

__all__ = ["Propagation"]

Dims = list[Any]
#: A shape or integer vector longer than this is not followed.
LONGEST: Final = 16


def _unknown(dim: Any) -> bool:
    return not isinstance(dim, int) and (dim is None or dim.value is None)


class Propagation:
    """One forward pass over a graph in execution order.

    Args:
        graph: Its values' unknown shapes are filled in.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._vectors: dict[int, Dims] = {}

    def run(self) -> int:
        """Visit every node once. Returns how many values are known better than before."""
        better = 0
        for value in self._graph.inputs:
            self.name_unknown(value)
        for node in self._graph:
            better += self._visit(node)
            for output in node.outputs:
                if not output.is_graph_output():
                    self.name_unknown(output)
        return better

    def _visit(self, node: ir.Node) -> int:
        self._follow_vector(node)
        rule = _SHAPES.get(op_name(node))
        if rule is None or not node.inputs or not node.outputs:
            return 0
        try:
            shape = rule(self, node)
        except (IndexError, TypeError, AttributeError, ValueError):
            return 0  # an input of unknown or unfitting rank: nothing can be said
        return _take(node.outputs[0], shape) + self._types(node)

    def name_unknown(self, value: ir.Value) -> None:
        """Give each unknown dimension of a value a symbol of its own, so that later ones can be equal to it."""
        if value.shape is None or not any(_unknown(d) for d in value.shape):
            return
        named = [f"{value.name}_d{axis}" if _unknown(d) else d for axis, d in enumerate(value.shape)]
        value.shape = ir.Shape(named)

    def _types(self, node: ir.Node) -> int:
        first = node.inputs[0]
        output = node.outputs[0]
        if output.dtype is not None or first is None:
            return 0
        if op_name(node) == "Cast":
            output.dtype = cast_target(node)
        elif op_name(node) == "Shape":
            output.dtype = ir.DataType.INT64
        elif op_name(node) == "Where":
            output.dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
        elif op_name(node) in _SAME_TYPE:
            output.dtype = first.dtype
        return int(output.dtype is not None)

    # Integer vectors: what a Reshape or Expand is told.

    def vector(self, value: ir.Value | None) -> Dims | None:
        """The elements of an integer vector: numbers, and symbols where they come from shapes."""
        if value is None:
            return None
        if id(value) in self._vectors:
            return self._vectors[id(value)]
        array = constant(value, limit=LONGEST)
        if array is None or array.dtype.kind != "i" or array.ndim > 1:
            return None
        return [int(x) for x in array.reshape(-1)]

    def _follow_vector(self, node: ir.Node) -> None:
        rule = _VECTORS.get(op_name(node))
        if rule is None or len(node.outputs) != 1:
            return
        try:
            found = rule(self, node)
        except (IndexError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            return
        if found is not None and len(found) <= LONGEST:
            self._vectors[id(node.outputs[0])] = found


def _take(value: ir.Value, shape: Dims | None) -> int:
    if shape is None:
        return 0
    if value.shape is None:
        value.shape = ir.Shape(shape)
        return 1
    if len(value.shape) != len(shape) or not any(_unknown(d) for d in value.shape):
        return 0
    better = [b if _unknown(a) else a for a, b in zip(value.shape, shape, strict=True)]
    changed = any(_unknown(a) and not _unknown(b) for a, b in zip(value.shape, shape, strict=True))
    if changed:
        value.shape = ir.Shape(better)
    return int(changed)


def _dims(value: ir.Value | None) -> Dims:
    if value is None or value.shape is None:
        raise ValueError("unknown rank")
    return list(value.shape)


# Shapes, one function an operator family. Each returns the first output's dimensions, or None.


def _same(p: Propagation, node: ir.Node) -> Dims:
    return _dims(node.inputs[0])


def _broadcast(p: Propagation, node: ir.Node) -> Dims:
    shapes = [_dims(v) for v in node.inputs]
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


def _matmul(p: Propagation, node: ir.Node) -> Dims | None:
    left, right = _dims(node.inputs[0]), _dims(node.inputs[1])
    if len(left) < 2 or len(right) < 2:
        return None
    rank = max(len(left), len(right))
    heads = [[1] * (rank - len(s)) + s[:-2] for s in (left, right)]
    return [_joint(list(pair)) for pair in zip(*heads, strict=True)] + [left[-2], right[-1]]


def _gemm(p: Propagation, node: ir.Node) -> Dims:
    left, right = _dims(node.inputs[0]), _dims(node.inputs[1])
    rows = left[1] if attribute(node, "transA", 0) else left[0]
    return [rows, right[0] if attribute(node, "transB", 0) else right[1]]


def _transpose(p: Propagation, node: ir.Node) -> Dims:
    source = _dims(node.inputs[0])
    perm = attribute(node, "perm") or tuple(reversed(range(len(source))))
    return [source[axis] for axis in perm]


def _reshape(p: Propagation, node: ir.Node) -> Dims | None:
    source, target = _dims(node.inputs[0]), p.vector(node.inputs[1])
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
    if divisor == 0 or number % divisor or any(_unknown(d) for d in symbols):
        return None
    number //= divisor
    if not symbols:
        return number
    product = symbols[0]
    for symbol in symbols[1:]:
        product = product * symbol
    return product if number == 1 else product * number


def _expand(p: Propagation, node: ir.Node) -> Dims | None:
    source, target = _dims(node.inputs[0]), p.vector(node.inputs[1])
    if target is None:
        return None
    rank = max(len(source), len(target))
    pair = ([1] * (rank - len(s)) + s for s in (source, target))
    return [_joint(list(both)) for both in zip(*pair, strict=True)]


def _unsqueeze(p: Propagation, node: ir.Node) -> Dims | None:
    source, axes = _dims(node.inputs[0]), axes_of(node)
    if axes is None:
        return None
    rank = len(source) + len(axes)
    new = {a % rank for a in axes}
    rest = iter(source)
    return [1 if axis in new else next(rest) for axis in range(rank)]


def _squeeze(p: Propagation, node: ir.Node) -> Dims | None:
    source, axes = _dims(node.inputs[0]), axes_of(node)
    if axes is None:
        return None
    gone = {a % len(source) for a in axes}
    return [d for axis, d in enumerate(source) if axis not in gone]


def _concat(p: Propagation, node: ir.Node) -> Dims:
    shapes = [_dims(v) for v in node.inputs]
    axis = attribute(node, "axis") % len(shapes[0])
    result = [_joint([s[i] for s in shapes]) for i in range(len(shapes[0]))]
    sizes = [s[axis] for s in shapes]
    result[axis] = sum(sizes) if all(isinstance(s, int) for s in sizes) else None
    return result


def _slice(p: Propagation, node: ir.Node) -> Dims | None:
    source = _dims(node.inputs[0])
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


def _gather(p: Propagation, node: ir.Node) -> Dims:
    source, indices = _dims(node.inputs[0]), _dims(node.inputs[1])
    axis = attribute(node, "axis", 0) % len(source)
    return source[:axis] + indices + source[axis + 1 :]


def _reduce(p: Propagation, node: ir.Node) -> Dims | None:
    source, axes = _dims(node.inputs[0]), axes_of(node)
    if axes is None:
        return None
    gone = {a % len(source) for a in axes}
    if attribute(node, "keepdims", 1):
        return [1 if axis in gone else d for axis, d in enumerate(source)]
    return [d for axis, d in enumerate(source) if axis not in gone]


def _range(p: Propagation, node: ir.Node) -> Dims | None:
    start, limit, delta = (p.vector(v) for v in node.inputs)
    return limit if start == [0] and delta == [1] else None


def _filled(p: Propagation, node: ir.Node) -> Dims | None:
    return p.vector(node.inputs[0])


def _shape_of(p: Propagation, node: ir.Node) -> Dims:
    low, high, _ = slice(attribute(node, "start", 0), attribute(node, "end")).indices(
        len(_dims(node.inputs[0]))
    )
    return [max(high - low, 0)]


# Vectors.


def _vector_of_shape(p: Propagation, node: ir.Node) -> Dims | None:
    source = _dims(node.inputs[0])
    return source[slice(attribute(node, "start", 0), attribute(node, "end"))]


def _vector_same(p: Propagation, node: ir.Node) -> Dims | None:
    return p.vector(node.inputs[0])


def _vector_concat(p: Propagation, node: ir.Node) -> Dims | None:
    parts = [p.vector(v) for v in node.inputs]
    return None if any(part is None for part in parts) else [d for part in parts for d in part or []]


def _vector_gather(p: Propagation, node: ir.Node) -> Dims | None:
    source, indices = p.vector(node.inputs[0]), p.vector(node.inputs[1])
    return None if source is None or indices is None else [source[i] for i in indices]


def _vector_slice(p: Propagation, node: ir.Node) -> Dims | None:
    source, starts, ends = (p.vector(v) for v in node.inputs[:3])
    step = p.vector(node.inputs[4])[0] if len(node.inputs) > 4 and node.inputs[4] is not None else 1  # type: ignore[index]
    return None if source is None or starts is None or ends is None else source[starts[0] : ends[0] : step]


def _vector_arithmetic(p: Propagation, node: ir.Node) -> Dims | None:
    left, right = p.vector(node.inputs[0]), p.vector(node.inputs[1])
    if left is None or right is None or (1 not in (len(left), len(right)) and len(left) != len(right)):
        return None
    count = max(len(left), len(right))
    left, right = (v * count if len(v) == 1 else v for v in (left, right))
    return [_combine(node.op_type, a, b) for a, b in zip(left, right, strict=True)]


def _combine(op: str, a: Any, b: Any) -> Any:
    if op == "Div":
        return a // b if isinstance(a, int) and isinstance(b, int) else (a if b == 1 else None)
    if isinstance(b, ir.SymbolicDim) and isinstance(a, int):
        a, b = b, a
        return {"Add": a + b, "Mul": a * b}.get(op)
    return {"Add": lambda: a + b, "Sub": lambda: a - b, "Mul": lambda: a * b}[op]()


_Rule = Callable[[Propagation, ir.Node], "Dims | None"]


def _table(rules: Sequence[tuple[str, _Rule]]) -> dict[str, _Rule]:
    return {op: rule for ops, rule in rules for op in ops.split()}


_SHAPES: Final = _table(
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
        (
            "com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::QuickGelu",
            _same,
        ),
        ("com.microsoft::RotaryEmbedding com.microsoft::MultiHeadAttention", _same),
        (
            "Add Sub Mul Div Pow Where Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor Min Max Mod",
            _broadcast,
        ),
        ("MatMul", _matmul),
        ("Gemm", _gemm),
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

_VECTORS: Final = _table(
    [
        ("Shape", _vector_of_shape),
        ("Identity Cast Squeeze Unsqueeze Reshape", _vector_same),
        ("Concat", _vector_concat),
        ("Gather", _vector_gather),
        ("Slice", _vector_slice),
        ("Add Sub Mul Div", _vector_arithmetic),
    ]
)

_SAME_TYPE: Final = frozenset(
    op
    for op in _SHAPES
    if op not in ("Shape", "IsNaN", "Not", "And", "Or", "Xor", "Equal", "Where", "Cast", "ConstantOfShape")
) - frozenset({"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Cast", "ConstantOfShape"})
