"""Leftover bfloat16 arithmetic in a float32 graph, computed in float32 with the same roundings.

A model such as Falcon with ALiBi rounds a few small tensors to bfloat16 inside an otherwise float32 graph.
onnxruntime has no CPU kernel for bfloat16 arithmetic. torch computes it in float32 and rounds the result, so
the same numbers come from float32 operators between two casts.
"""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["widen_bfloat16"]

_KEPT = frozenset({"Cast", "CastLike", "Constant", "ConstantOfShape"})


def widen_bfloat16(model: ir.Model) -> int:
    """Compute bfloat16 nodes in float32, in place, where bfloat16 is a leftover.

    A model with bfloat16 inputs, or with most of its weights in bfloat16, is left as it is: there the type is a
    choice.

    Returns:
        How many nodes were changed.
    """
    if _is_choice(model.graph):
        return 0
    touched = [node for node in model.graph.all_nodes() if _is_bfloat16(node)]
    for node in touched:
        _widen(node)
    return len(touched)


def _is_choice(graph: ir.Graph) -> bool:
    if any(value.dtype == ir.DataType.BFLOAT16 for value in graph.inputs):
        return True
    half = whole = 0
    for tensor in (value.const_value for value in graph.initializers.values()):
        if tensor is not None and tensor.dtype.is_floating_point():
            whole += tensor.size
            half += tensor.size if tensor.dtype == ir.DataType.BFLOAT16 else 0
    return 2 * half > whole


def _is_bfloat16(node: ir.Node) -> bool:
    if node.op_type in _KEPT:
        return False
    values = [*node.inputs, *node.outputs]
    return any(value is not None and value.dtype == ir.DataType.BFLOAT16 for value in values)


def _widen(node: ir.Node) -> None:
    graph = node.graph
    assert graph is not None
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.BFLOAT16:
            cast = _cast(node, value, ir.DataType.FLOAT, f"{value.name}_for_{node.name}_{index}")
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for output in node.outputs:
        if output.dtype == ir.DataType.BFLOAT16:
            _round(node, output)


def _round(node: ir.Node, output: ir.Value) -> None:
    """Give the users of an output its value rounded to bfloat16; the output itself becomes float32."""
    graph = node.graph
    assert graph is not None
    users = list(output.uses())
    cast = _cast(node, output, ir.DataType.BFLOAT16, f"{output.name}_rounded")
    graph.insert_after(node, cast)
    for user, index in users:
        user.replace_input_with(index, cast.outputs[0])
    for index, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[index] = cast.outputs[0]
    output.dtype = ir.DataType.FLOAT


def _cast(node: ir.Node, value: ir.Value, to: ir.DataType, name: str) -> ir.Node:
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", to.value)], name=f"node_{name}")
    cast.metadata_props.update(node.metadata_props)
    output = cast.outputs[0]
    output.name, output.dtype, output.shape = name, to, value.shape
    return cast
