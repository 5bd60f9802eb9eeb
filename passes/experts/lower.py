"""Lowering of every grouped product: part of a mixture of experts, or one product per group."""

from __future__ import annotations

import time
from typing import Final

import onnx_ir as ir

from ...runtime.report import PassRecord
from .. import canonical, canonical_experts
from ..bodies import add_bodies
from ..cleanup import pack_weights
from ..cleanup.fold import fold_weight_transposes
from ..engine import Engine
from ..rule import Rule
from .gathered import GatheredExperts
from .grouped import SortedExperts
from .looped import LoopedExperts

__all__ = ["RULES", "join_experts", "lower_experts"]

#: Read an activation as it is written, before it becomes one node with the bias before it.
EARLY: Final[tuple[Rule, ...]] = (LoopedExperts(),)
#: Read an activation as one node or as it is written.
LATE: Final[tuple[Rule, ...]] = (SortedExperts(), GatheredExperts())
#: All of them.
RULES: Final = (*EARLY, *LATE)


def join_experts(engine: Engine) -> None:
    """Make loops over experts one node each, their weights put together."""
    model = engine.context.model
    if engine.run("looped-experts", EARLY):
        add_bodies(model)
        pack_weights(model)
        fold_weight_transposes(model)
        pack_weights(model)


def lower_experts(engine: Engine) -> None:
    """Make mixtures of experts one node each; expand every grouped product that is left, with the reason journalled."""
    model = engine.context.model
    if engine.run("experts", LATE):
        add_bodies(model)
    start, before = time.perf_counter(), model.graph.num_nodes()
    nodes = _grouped(model)
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


def _grouped(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph.all_nodes() if canonical_experts.is_grouped(n)]
