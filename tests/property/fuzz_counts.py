"""What a run of the fuzzer counted, and the page that says so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from .attention_trial import Found, Trial

__all__ = ["Counts"]

_HEAD = """# Differential fuzzing of attention

`make fuzz` draws random attention modules, exports and fuses them, and compares them with eager in float64 at sizes
the trace did not see; a batch split into its rows, more padding behind and (in a share of them) heads in another order
must change nothing. Graphs of bfloat16, for which the CPU has no kernels, run in float32 once they are fused. This page
is written by `python -m tests.property.fuzz --page benchmarks/results/fuzz.md`. Everything follows from the seed and
from the time there was.

"""


@dataclass
class Counts:
    """What a run counted.

    Attributes:
        lanes: Attentions by exporter and element type.
        tried: Attentions exported, fused and compared.
        fused: By operator.
        declined: By reason.
        overlooked: Attentions that left no record in the journal.
        rolled_back: Rewrites the proof refused, by rule and reason.
        assumed: Sites by named assumption.
        broken: Exceptions by stage, in attentions.
        not_exported: Attentions that torch's older exporter refused or wrote a graph for that does not load.
        faulty_exports: Attentions whose graph differs as much before anything was fused: in rows without a key, say, of
            bfloat16, where a fill of 1e4 leaves other noise in the float32 that such graphs run in.
        unfair: Attentions that overflow in eager itself.
        wrong: Fused modules that differ from eager. Must stay 0.
        worst: Largest error of a right one, relative to the largest output, by element type.
        cases: Reproducers: what happened and the source of the module.
    """

    lanes: Counter[str] = field(default_factory=Counter)
    tried: int = 0
    fused: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    overlooked: int = 0
    rolled_back: Counter[str] = field(default_factory=Counter)
    assumed: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    not_exported: int = 0
    faulty_exports: int = 0
    unfair: int = 0
    wrong: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: Trial, lane: str, count: int) -> None:
        """Count a trial of ``count`` attentions."""
        if result.broken:
            self.broken[result.broken[:90]] += count
            return
        self.lanes[lane] += count
        dtype = lane.partition(" ")[2] or "float32"
        for found in result.found:
            self.tried += 1
            self.faulty_exports += found.judged.faulty_export
            self.unfair += found.judged.unfair
            self.wrong += bool(found.problem)
            if not (found.problem or found.judged.faulty_export or found.judged.unfair):
                self.worst[dtype] = max(self.worst.get(dtype, 0.0), found.judged.error)
            self._site(found)
        assert result.journal is not None
        for decline in result.journal.declines:
            if decline.rolled_back:
                self.rolled_back[f"{decline.rule} {decline.reason}"] += 1

    def _site(self, found: Found) -> None:
        site = found.site
        if site is None:
            self.overlooked += 1
            return
        self.assumed.update(site.assumptions)
        if site.status == "fused":
            self.fused[str(site.op)] += 1
        else:
            self.declined[str(site.reason)] += 1

    def line(self) -> str:
        """The counts that matter, in one line."""
        return (
            f"{self.tried} tried, {sum(self.fused.values())} fused, {sum(self.declined.values())} declined, "
            f"{self.overlooked} overlooked, {sum(self.broken.values())} broken, {self.wrong} wrong"
        )

    def as_json(self) -> dict[str, Any]:
        """Plain data, counters sorted."""
        return {
            f.name: dict(sorted(value.items())) if isinstance(value := getattr(self, f.name), dict) else value
            for f in fields(self)
        }

    @staticmethod
    def of_json(data: Mapping[str, Any]) -> Counts:
        """The inverse of :meth:`as_json`."""
        return Counts(**{k: Counter(v) if isinstance(v, dict) and k != "worst" else v for k, v in data.items()})

    def page(self, seeds: Sequence[int]) -> str:
        """The counts as a page."""
        totals = [
            ("tried", self.tried),
            ("fused", sum(self.fused.values())),
            ("declined with a reason", sum(self.declined.values())),
            ("without a record", self.overlooked),
            ("rewrites rolled back by their proof", sum(self.rolled_back.values())),
            ("broken (an exception)", sum(self.broken.values())),
            ("wrong", self.wrong),
            ("as far from eager before anything was fused", self.faulty_exports),
            ("not finite in eager itself", self.unfair),
            ("refused by torch's older exporter, not counted above", self.not_exported),
        ]
        parts = [_HEAD, f"Seed {', '.join(map(str, seeds))}.\n\n", _table(("attentions", "count"), totals)]
        for title, counter in (
            ("exporter and element type", self.lanes),
            ("fused to", self.fused),
            ("declined because", self.declined),
            ("rewrite rolled back", self.rolled_back),
            ("assumption recorded", self.assumed),
            ("broken", self.broken),
        ):
            if counter:
                parts.append("\n" + _table((title, "count"), sorted(counter.items(), key=lambda x: (-x[1], x[0]))))
        worst = [(dtype, f"{error:.1e}") for dtype, error in sorted(self.worst.items())]
        parts.append("\n" + _table(("element type", "worst error, of the largest output"), worst))
        return "".join(parts)


def _table(heads: tuple[str, str], rows: Sequence[tuple[str, object]]) -> str:
    lines = [f"| {heads[0]} | {heads[1]} |", "|---|---:|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"
