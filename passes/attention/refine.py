"""Improves lowered attention nodes by what stands right before them, and keeps the sites' records true."""

from __future__ import annotations

from dataclasses import replace

from ..bodies import add_bodies
from ..engine import Engine
from ..graph import op_name
from ..rule import Rule
from .bias import ProjectionBias
from .heads_first import HeadsFirst
from .moved_parts import MovedParts
from .one_tensor import OneTensor
from .packed import SeparateProjections
from .scaled_query import ScaledQuery

__all__ = ["REFINE", "refine_attention"]

#: Rules that improve the lowered nodes.
REFINE: tuple[Rule, ...] = (
    ScaledQuery(),
    ProjectionBias(),
    SeparateProjections(),
    MovedParts(),
    OneTensor(),
    HeadsFirst(),
)


def refine_attention(engine: Engine) -> None:
    """Run :data:`REFINE`; a fused site then names the operator its node has become."""
    engine.run("attention-bias", REFINE)
    add_bodies(engine.context.model)
    operators = {str(node.name): op_name(node) for node in engine.context.model.graph.all_nodes()}
    sites = engine.journal.sites
    sites[:] = [replace(s, op=operators.get(s.name, s.op)) if s.status == "fused" else s for s in sites]
