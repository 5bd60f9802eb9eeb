"""Equal things once, unread things not at all."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["deduplicate"]

#: Operators whose second and third outputs are for training; a name would ask for them.
_TRAINING_OUTPUTS: Final = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})


def deduplicate(model: ir.Model) -> int:
    """Merge equal initializers and equal nodes, drop identities and what nothing reads, in place.

    Large weights are compared by identity only, never read. Inputs, outputs and their names stay.

    Returns:
        How many nodes went.
    """
    before = model.graph.num_nodes()
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
    )(model)
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
