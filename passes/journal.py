"""The journal: what every pass did and declined, gathered while the pipeline runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..runtime.report import Decline, PassRecord, Rewrite, Site

__all__ = ["Journal"]


@dataclass(slots=True)
class Journal:
    """Collects the records of one pipeline run, in the order they happen.

    Attributes:
        rewrites: Applied rewrites with their proof.
        declines: Refusals and rolled-back rewrites.
        passes: One record a pass.
        sites: Every attention of the model; complete when the pipeline has ended.
        notes: Sentences for the user.
        attempts: Rule code to how often it looked at a node.
    """

    rewrites: list[Rewrite] = field(default_factory=list)
    declines: list[Decline] = field(default_factory=list)
    passes: list[PassRecord] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)

    def worth_telling(self) -> list[Decline]:
        """The refusals a user may want to read: of layout rules (a transpose that stays) only rolled-back ones."""
        return [d for d in self.declines if d.rolled_back or not d.rule.startswith("LAY")]

    def assumptions(self) -> tuple[str, ...]:
        """Names of all assumptions that applied rewrites rest on, sorted."""
        named = {a for r in self.rewrites for a in r.assumptions} | {a for s in self.sites for a in s.assumptions}
        return tuple(sorted(named))

    def fired(self) -> dict[str, int]:
        """Rule code to number of applications, sorted by code."""
        return dict(sorted(Counter(r.rule for r in self.rewrites).items()))
