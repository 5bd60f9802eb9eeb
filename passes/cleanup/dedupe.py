"""Equal things once, unread things not at all."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["deduplicate"]


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
    return before - model.graph.num_nodes()
