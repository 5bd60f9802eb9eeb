"""Equal things once, unread things not at all."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
import onnx_ir.passes.common as common

from .hush import hushed

__all__ = ["deduplicate"]

#: Operators whose second and third outputs are for training; a name would ask for them.
_TRAINING_OUTPUTS: Final = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
#: Warns of every initializer that is also an input of the graph, which is kept as it must be.
_CHATTY: Final = "onnx_ir.passes.common.initializer_deduplication"


class _Identities(common.IdentityEliminationPass):
    """onnx_ir's pass, less two faults of its own.

    A branch that hands on a value of the graph around it needs its node, and so does one value that is an output
    under two names.
    """

    def _try_eliminate_identity_node(self, node: ir.Node) -> bool:
        value = node.inputs[0] if node.inputs else None
        source = None if value is None else value.producer()
        if node.outputs[0].is_graph_output() and (source is None or source.graph is not node.graph):
            return False
        if node.outputs[0].is_graph_output() and value is not None and value.is_graph_output():
            return False
        return super()._try_eliminate_identity_node(node)


def deduplicate(model: ir.Model) -> int:
    """Merge equal initializers and equal nodes, drop identities and what nothing reads, in place.

    Large weights are compared by identity only, never read. Inputs, outputs and their names stay.

    Returns:
        How many nodes went.
    """
    before = model.graph.num_nodes()
    steps = ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        _Identities(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )
    with hushed(_CHATTY):
        steps(model)
    _leave_out_unread(model)
    return before - model.graph.num_nodes()


def _leave_out_unread(model: ir.Model) -> None:
    """Take the names of optional outputs that nothing reads: passes of others give them names again."""
    for node in model.graph:
        if node.domain != "com.microsoft" or node.op_type not in _TRAINING_OUTPUTS:
            continue
        for output in node.outputs[1:3]:
            if not output.uses() and not output.is_graph_output():
                output.name = ""
