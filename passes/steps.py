"""The steps of a pipeline run, one after each change of the model, for whoever looks for the first wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["Step", "Steps", "Watch"]


@dataclass(frozen=True, slots=True)
class Step:
    """A change of the model.

    Attributes:
        number: From 1, in the order they happen; the same in every run on the same model.
        stage: The pass that made it.
        rule: Code of the rule, or None for a pass over the whole graph.
        at: Node the rule was applied at.
        nodes: Names of the nodes it put there.
        values: Names of each value that went and of the one that took its place.
    """

    number: int
    stage: str
    rule: str | None = None
    at: str | None = None
    nodes: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()


#: Called after each step with the model as it stands, which it must not change.
Watch = Callable[[Step, ir.Model], None]


class Steps:
    """Counts steps and tells them to a watcher; without one it does nothing."""

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch = watch
        self._count = 0

    def tell(
        self,
        model: ir.Model,
        stage: str,
        *,
        rule: str | None = None,
        at: str | None = None,
        nodes: tuple[str, ...] = (),
        values: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """Say that the model was changed."""
        if self._watch is None:
            return
        self._count += 1
        self._watch(Step(self._count, stage, rule, at, nodes, values), model)
