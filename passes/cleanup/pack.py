"""Weights put together or in another order are stored, not computed: they are read when the model is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..graph import attribute, constant, remove_node

__all__ = ["pack_weights"]


def pack_weights(model: ir.Model) -> int:
    """Replace Concats of initializers alone, Gathers of one by constant indices and Reshapes of one, in place.

    Each becomes one initializer.

    No weight is read for it.

    Returns:
        How many nodes went.
    """
    graph, count = model.graph, 0
    for node in [n for n in graph if n.op_type in ("Concat", "Gather", "Reshape") and n.domain == ""]:
        parts = [v for v in node.inputs if v is not None]
        output = node.outputs[0]
        stored = all(v.is_initializer() and not v.is_graph_input() and v.const_value is not None for v in parts)
        if not stored or len(parts) != len(node.inputs) or output.is_graph_output():
            continue
        if node.op_type == "Concat":
            packed: ir.Value | None = _packed(graph, parts, int(attribute(node, "axis")))
        else:
            packed = _taken(graph, node) if node.op_type == "Gather" else _reshaped(graph, node)
        if packed is None:
            continue
        ir.convenience.replace_all_uses_with(output, packed)
        remove_node(node)
        for part in parts:
            if not part.uses() and not part.is_graph_output():
                graph.initializers.pop(str(part.name), None)
        count += 1
    return count


def _packed(graph: ir.Graph, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    tensors = [v.const_value for v in parts]
    first = tensors[0]
    assert first is not None
    axis %= len(first.shape)
    sizes = [int(t.shape[axis]) for t in tensors if t is not None]
    shape = ir.Shape([sum(sizes) if i == axis else int(d) for i, d in enumerate(first.shape)])

    def read() -> ir.TensorProtocol:
        joined = np.concatenate([t.numpy() for t in tensors if t is not None], axis=axis)
        return ir.tensor(joined, dtype=first.dtype)

    return _stored(graph, f"{parts[0].name}.packed", read, first.dtype, shape)


def _taken(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """A weight with its rows or columns in another order; None where the weight stays in the graph as it was too."""
    weight, index = node.inputs
    assert weight is not None and weight.const_value is not None and index is not None
    source, indices = weight.const_value, constant(index)
    if indices is None or indices.ndim != 1 or len(weight.uses()) != 1:
        return None
    axis = int(attribute(node, "axis", 0)) % len(source.shape)
    shape = ir.Shape([len(indices) if i == axis else int(d) for i, d in enumerate(source.shape)])

    def read() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(source.numpy().take(indices, axis=axis)), dtype=source.dtype)

    return _stored(graph, f"{weight.name}.ordered", read, source.dtype, shape)


def _reshaped(graph: ir.Graph, node: ir.Node) -> ir.Value | None:
    """A weight with other axes; None where it stays in the graph with its own too."""
    weight, target = node.inputs
    assert weight is not None and weight.const_value is not None and target is not None
    source, sizes = weight.const_value, constant(target)
    if sizes is None or 0 in sizes or len(weight.uses()) != 1 or not source.dtype.is_floating_point():
        return None
    known = math.prod(int(size) for size in sizes if size > 0)
    shape = ir.Shape([int(size) if size > 0 else source.size // known for size in sizes])

    def read() -> ir.TensorProtocol:
        return ir.tensor(source.numpy().reshape([int(size) for size in sizes]), dtype=source.dtype)

    return _stored(graph, f"{weight.name}.reshaped", read, source.dtype, shape)


def _stored(
    graph: ir.Graph, wanted: str, read: Callable[[], ir.TensorProtocol], dtype: ir.DataType, shape: ir.Shape
) -> ir.Value:
    """A new initializer that is computed when it is read."""
    name, number = wanted, 0
    while name in graph.initializers:
        number += 1
        name = f"{wanted}.{number}"
    tensor = ir.LazyTensor(read, dtype=dtype, shape=shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
