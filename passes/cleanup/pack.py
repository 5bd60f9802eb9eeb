"""Concatenations of weights are stored, not computed: the parts are read when the model is written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..graph import attribute, remove_node

__all__ = ["pack_weights"]


def pack_weights(model: ir.Model) -> int:
    """Replace each Concat of initializers alone by one initializer, in place. No weight is read for it.

    Returns:
        How many Concat nodes went.
    """
    graph, count = model.graph, 0
    for node in [n for n in graph if n.op_type == "Concat" and n.domain == ""]:
        parts = [v for v in node.inputs if v is not None]
        output = node.outputs[0]
        stored = all(v.is_initializer() and not v.is_graph_input() and v.const_value is not None for v in parts)
        if not stored or len(parts) != len(node.inputs) or output.is_graph_output():
            continue
        packed = _packed(graph, parts, int(attribute(node, "axis")))
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
    name, number = f"{parts[0].name}.packed", 0
    while name in graph.initializers:
        number += 1
        name = f"{parts[0].name}.packed.{number}"

    def read() -> ir.TensorProtocol:
        joined = np.concatenate([t.numpy() for t in tensors if t is not None], axis=axis)
        return ir.tensor(joined, dtype=first.dtype)

    tensor = ir.LazyTensor(read, dtype=first.dtype, shape=shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(first.dtype), shape=shape, const_value=tensor)
    graph.register_initializer(value)
    return value
