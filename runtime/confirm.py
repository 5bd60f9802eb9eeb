"""A failed latency is measured a second time: one bad spell of a machine must not stop anybody's merge."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from .report import LatencyReport, Ratio

__all__ = ["confirmed"]

_NOT_CONFIRMED: Final = "it was measured as too slow, and a second measurement did not confirm it: measure again"


def confirmed(first: LatencyReport, again: LatencyReport) -> LatencyReport:
    """The first report where both fail; else it is inconclusive, with intervals wide enough for both.

    Args:
        first: A report whose verdict is "fail".
        again: A second measurement of the same contenders.
    """
    if again.verdict == "fail":
        return first
    second = {ratio.of: ratio for ratio in again.ratios}
    ratios = tuple(_widened(r, second.get(r.of)) if r.verdict == "fail" else r for r in first.ratios)
    return replace(first, verdict="inconclusive", ratios=ratios, notes=(*first.notes, _NOT_CONFIRMED))


def _widened(first: Ratio, again: Ratio | None) -> Ratio:
    if again is None:
        return replace(first, verdict="inconclusive")
    low, high = min(first.low, again.low), max(first.high, again.high)
    return replace(first, low=low, high=high, verdict="inconclusive")
