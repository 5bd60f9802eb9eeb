"""Lowering of every grouped product: part of a mixture of experts, or one product per group."""

from __future__ import annotations

import time

from ...runtime.report import PassRecord
from .. import canonical, canonical_experts
from ..engine import Engine

__all__ = ["lower_experts"]


def lower_experts(engine: Engine) -> None:
    """Expand every canonical grouped product. None is left."""
    model = engine.context.model
    nodes = [n for n in model.graph.all_nodes() if canonical_experts.is_grouped(n)]
    start, before = time.perf_counter(), model.graph.num_nodes()
    for node in nodes:
        canonical.replace_by_plain(node)
    model.graph.opset_imports.pop(canonical.DOMAIN, None)
    if not nodes:
        return
    model.graph.sort()
    engine.steps.tell(model, "expand-experts")
    engine.journal.passes.append(
        PassRecord(
            name="expand-experts",
            seconds=time.perf_counter() - start,
            rewrites=0,
            nodes_before=before,
            nodes_after=model.graph.num_nodes(),
        )
    )
