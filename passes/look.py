"""Looking at a graph by meaning: operands in either order, past casts and identities, constants by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx_ir as ir

from ..runtime.target import Target
from .graph import attribute, constant, dims, op_name, producer, scalar
from .rule import Context, Declined
from .symbols import same_dim

__all__ = [
    "FLOATS",
    "axes_of",
    "cast_target",
    "close_to",
    "consumers",
    "exactly_last_axis",
    "no_match",
    "opset",
    "past_casts",
    "past_identity",
    "plus_scalar",
    "require",
    "same_dims",
    "sole_reader",
    "square_of",
    "times_scalar",
    "unused_elsewhere",
]

#: Floating-point types a fused operator may carry.
FLOATS: Final = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE},
)

_HALVES: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16})
_ON_CUDA: Final = _HALVES | {ir.DataType.BFLOAT16}
#: Types that run on the CPU provider; float16 has kernels or gets casts to float32 from onnxruntime itself.
_ON_CPU: Final[dict[str, frozenset[ir.DataType]]] = {
    "SkipLayerNormalization": _ON_CUDA,
    "SkipSimplifiedLayerNormalization": _ON_CUDA,
    "SimplifiedLayerNormalization": FLOATS,
    "LayerNormalization": FLOATS,
    "RMSNormalization": _HALVES | {ir.DataType.DOUBLE},
}
_ON_GPU: Final[dict[str, frozenset[ir.DataType]]] = {
    "SimplifiedLayerNormalization": FLOATS,
    "LayerNormalization": FLOATS,
    "RMSNormalization": FLOATS,
}


def no_match(detail: str = "something else") -> Declined:
    """The refusal that is not journalled: this is simply not what the rule looks for."""
    return Declined("no-match", detail)


def require(dtype: ir.DataType | None, op: str, target: Target, at: ir.Node) -> ir.DataType:
    """The element type, when the target runs ``op`` with it.

    Raises:
        Declined: "dtype" when it does not, or the type is unknown.
    """
    on_cpu = target.provider == "CPUExecutionProvider"
    table, usual = (_ON_CPU, _HALVES) if on_cpu else (_ON_GPU, _ON_CUDA)
    if dtype is None or dtype not in table.get(op, usual):
        found = "an unknown type" if dtype is None else dtype.name
        raise Declined("dtype", f"{op} does not run with {found} on {target.name}", at=at)
    return dtype


def opset(context: Context) -> int:
    """The ai.onnx opset of the model at hand."""
    return context.model.graph.opset_imports.get("", context.target.opset)


def past_identity(value: ir.Value) -> ir.Value:
    """The value behind any chain of Identity."""
    while (node := producer(value, "Identity")) is not None and node.inputs[0] is not None:
        value = node.inputs[0]
    return value


def past_casts(value: ir.Value) -> ir.Value:
    """The value behind any chain of Identity and of casts between floating-point types."""
    while (node := producer(value, "Identity", "Cast")) is not None and node.inputs[0] is not None:
        source = node.inputs[0]
        if node.op_type == "Cast" and (source.dtype not in FLOATS or cast_target(node) not in FLOATS):
            break
        value = source
    return value


def cast_target(node: ir.Node) -> ir.DataType:
    """The type a Cast converts to."""
    return ir.DataType(attribute(node, "to", 0))


def consumers(value: ir.Value) -> Iterator[ir.Node]:
    """The nodes that read a value, past Identity, each once, in a fixed order."""
    seen: set[int] = set()
    for use in value.uses():
        if op_name(use.node) == "Identity":
            yield from consumers(use.node.outputs[0])
        elif id(use.node) not in seen:
            seen.add(id(use.node))
            yield use.node


def unused_elsewhere(value: ir.Value, reader: ir.Node) -> bool:
    """Whether ``reader`` is the only node that reads a value, and it is no graph output."""
    return not value.is_graph_output() and all(use.node is reader for use in value.uses())


def sole_reader(value: ir.Value, *ops: str) -> ir.Node | None:
    """The one node that reads a value (it may read it twice), when it is one of ``ops``, else None."""
    nodes = list(consumers(value))
    if len(nodes) != 1 or value.is_graph_output():
        return None
    return nodes[0] if not ops or op_name(nodes[0]) in ops else None


def plus_scalar(value: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, c) when the value is x + c or c + x with a constant of one element."""
    return _with_scalar(producer(value, "Add"))


def times_scalar(value: ir.Value) -> tuple[ir.Value, float] | None:
    """(x, c) when the value is x * c, c * x or x / (1 / c) with a constant of one element."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return None
    if node.op_type == "Div":
        number = scalar(node.inputs[1])
        ok = number is not None and number != 0 and node.inputs[0] is not None and scalar(node.inputs[0]) is None
        return (past_identity(node.inputs[0]), 1.0 / float(number)) if ok else None  # type: ignore[arg-type]
    return _with_scalar(node)


def _with_scalar(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    if node is None:
        return None
    for index in (1, 0):
        other, number = node.inputs[1 - index], scalar(node.inputs[index])
        if number is not None and other is not None and _keeps_shape(node, other):
            return past_identity(other), float(number)
    return None


def _keeps_shape(node: ir.Node, operand: ir.Value) -> bool:
    """A one-element constant of higher rank would add axes."""
    here, there = dims(operand), dims(node.outputs[0])
    return here is None or there is None or len(here) == len(there)


def square_of(value: ir.Value) -> ir.Value | None:
    """x when the value is x ** 2 or x * x."""
    value = past_identity(value)
    node = producer(value, "Pow", "Mul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    left, right = node.inputs[0], node.inputs[1]
    if node.op_type == "Pow":
        return past_identity(left) if scalar(right) == 2 else None
    return past_identity(left) if past_identity(left) is past_identity(right) else None


def axes_of(node: ir.Node) -> tuple[int, ...] | None:
    """The axes of a reduction, Squeeze or Unsqueeze, from the attribute or the constant input; None when unknown."""
    given = attribute(node, "axes")
    if given is not None:
        return tuple(int(a) for a in given)
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    array = constant(node.inputs[1])
    return None if array is None else tuple(int(a) for a in array.reshape(-1))


def exactly_last_axis(node: ir.Node) -> bool:
    """Whether a reduction runs over the last axis alone and keeps it."""
    axes, shape = axes_of(node), dims(node.inputs[0])
    if axes is None or len(axes) != 1 or attribute(node, "keepdims", 1) != 1:
        return False
    return axes[0] == -1 or (shape is not None and axes[0] == len(shape) - 1)


def close_to(number: float | None, expected: float, *, relative: float = 1e-6) -> bool:
    """Whether a constant is the expected one up to the rounding of float32 (and of float16 when asked for)."""
    return number is not None and bool(np.isclose(number, expected, rtol=relative, atol=0.0))


def same_dims(left: ir.Value, right: ir.Value) -> bool:
    """Whether two values provably have the same shape."""
    a, b = left.shape, right.shape
    if a is None or b is None or len(a) != len(b):
        return False
    return all(same_dim(x, y) for x, y in zip(a, b, strict=True))
