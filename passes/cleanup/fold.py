"""Constant folding: onnxscript's, with weights transposed lazily so that none is held twice."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ..graph import attribute, remove_node
from .transposed import TransposedTensor

__all__ = ["FOLDED_ELEMENTS", "fold", "fold_weight_transposes"]

#: Results of at most this many elements are computed and stored; larger ones stay nodes.
FOLDED_ELEMENTS: Final = 1 << 16
#: Rounds of folding: one constant can make another.
ROUNDS: Final = 3
#: A weight of more elements that something else reads too is not stored a second time.
SHARED_ELEMENTS: Final = 1 << 14


def fold(model: ir.Model) -> int:
    """Fold constants, propagate shapes and drop what is dead, in place.

    onnxscript's folder alone: its rewriter, which its ``optimize`` also runs, takes time that grows with the
    square of the node count.
    Weights are never copied: their transposes become lazy tensors, and nothing above
    :data:`FOLDED_ELEMENTS` is computed. Functions are kept, so own operators are not inlined. Inputs, outputs
    and their names stay.

    Returns:
        How many nodes went.
    """
    import onnx_ir.passes.common as common
    from onnxscript.optimizer import fold_constants_ir

    before = model.graph.num_nodes()
    fold_weight_transposes(model)
    for _ in range(ROUNDS):
        folded = fold_constants_ir(
            model,
            input_size_limit=FOLDED_ELEMENTS,
            output_size_limit=FOLDED_ELEMENTS,
            should_fold=_keep_large,
            onnx_shape_inference=True,
        )
        common.RemoveUnusedNodesPass()(model)
        if not folded.modified:
            break
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    fold_weight_transposes(model)
    return before - model.graph.num_nodes()


def _keep_large(node: ir.Node) -> bool | None:
    """Veto what would compute from, or into, something large; None leaves the decision to onnxscript."""
    sizes = [v.const_value.size for v in node.inputs if v is not None and v.const_value is not None]
    return False if any(size > FOLDED_ELEMENTS for size in sizes) else None


def fold_weight_transposes(model: ir.Model) -> int:
    """Replace ``Transpose(weight)`` by a weight that is stored transposed and read when it is written out.

    A large weight with other readers keeps its Transpose: storing it twice would cost more than the node,
    which onnxruntime folds at load time.

    Returns:
        How many Transpose nodes went.
    """
    graph = model.graph
    made: dict[tuple[int, tuple[int, ...]], ir.Value] = {}
    count = 0
    for node in [n for n in graph if n.op_type == "Transpose" and n.domain == ""]:
        weight, output = node.inputs[0], node.outputs[0]
        if weight is None or not _is_weight(weight) or output.is_graph_output():
            continue
        assert weight.const_value is not None
        perm = tuple(attribute(node, "perm") or reversed(range(len(weight.const_value.shape))))
        if not _worth_storing(weight, perm):
            continue
        key = (id(weight), perm)
        if key not in made:
            made[key] = _transposed(graph, weight, perm)
        ir.convenience.replace_all_uses_with(output, made[key])
        remove_node(node)
        count += 1
        if not weight.uses() and weight.name in graph.initializers:
            graph.initializers.pop(weight.name)
    return count


def _is_weight(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _worth_storing(weight: ir.Value, perm: tuple[int, ...]) -> bool:
    assert weight.const_value is not None
    if weight.const_value.size <= SHARED_ELEMENTS:
        return True
    if weight.is_graph_output():
        return False
    return all(
        use.node.op_type == "Transpose" and tuple(attribute(use.node, "perm") or reversed(range(len(perm)))) == perm
        for use in weight.uses()
    )


def _transposed(graph: ir.Graph, weight: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    source = weight.const_value
    assert source is not None
    order = "" if perm == tuple(reversed(range(len(perm)))) else "_" + "_".join(map(str, perm))
    name = _fresh(graph, f"{weight.name}.transposed{order}")
    tensor = TransposedTensor(source, perm, name=name)
    value = ir.Value(name=name, type=ir.TensorType(source.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _fresh(graph: ir.Graph, wanted: str) -> str:
    taken = graph.initializers
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}.{number}", number + 1
    return name
