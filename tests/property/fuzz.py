"""The long run of the differential suite: ``python -m tests.property.fuzz --seconds 600 --seed 1 --report out.json``.

Draws random attention modules, exports and fuses them, and compares them with eager in float64 at sizes the trace
did not see. Whatever is wrong or breaks is shrunk to a module of one attention and printed as source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .attention_source import module_source
from .attention_spec import AttentionSpec, draw, for_older_exporter, simpler
from .attention_trial import TARGETS, Found, Trial, shared_proofs, trial

__all__ = ["Counts", "fuzz", "main", "shrink"]

#: Attentions of one module: torch's exporters differ in what they keep of the shapes of large modules.
GROUP = {"torch.export": 10, "torchscript": 1}
#: Trials a shrink may cost.
SHRINK_LIMIT = 16


@dataclass
class Counts:
    """What a run counted.

    Attributes:
        tried: Attentions exported, fused and compared.
        fused: By operator.
        declined: By reason.
        overlooked: Attentions that left no record in the journal.
        rolled_back: Rewrites the proof refused, by rule and reason.
        assumed: Fused sites by named assumption.
        broken: Exceptions by stage, in attentions.
        not_exported: Attentions that torch's older exporter refused or wrote a graph for that does not load.
        faulty_exports: Attentions whose graph was wrong before anything was fused.
        wrong: Fused modules that differ from eager. Must stay 0.
        worst: Largest error of a right one, relative to the largest output.
        cases: Reproducers: what happened and the source of the module.
    """

    tried: int = 0
    fused: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    overlooked: int = 0
    rolled_back: Counter[str] = field(default_factory=Counter)
    assumed: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    not_exported: int = 0
    faulty_exports: int = 0
    wrong: int = 0
    worst: float = 0.0
    cases: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: Trial, count: int) -> None:
        """Count a trial of ``count`` attentions."""
        if result.broken:
            self.broken[result.broken[:90]] += count
            return
        for found in result.found:
            self.tried += 1
            self.faulty_exports += found.faulty_export
            self.wrong += bool(found.problem)
            self.worst = max(self.worst, 0.0 if found.problem or found.faulty_export else found.error)
            self._site(found)
        assert result.journal is not None
        for decline in result.journal.declines:
            if decline.rolled_back:
                self.rolled_back[f"{decline.rule} {decline.reason}"] += 1

    def _site(self, found: Found) -> None:
        site = found.site
        if site is None:
            self.overlooked += 1
        elif site.status == "fused":
            self.fused[str(site.op)] += 1
            self.assumed.update(site.assumptions)
        else:
            self.declined[str(site.reason)] += 1

    def as_json(self) -> dict[str, Any]:
        """Plain data, counters sorted."""
        return {
            k: dict(sorted(v.items())) if isinstance(v, Counter) else v
            for k, v in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        }


def shrink(spec: AttentionSpec, fails: Callable[[AttentionSpec], bool], limit: int = SHRINK_LIMIT) -> AttentionSpec:
    """The plainest spec found that still fails: fields go back to their plain values one at a time."""
    spent, changed = 0, True
    while changed and spent < limit:
        changed = False
        for candidate in simpler(spec):
            spent += 1
            if spent > limit:
                break
            if fails(candidate):
                spec, changed = candidate, True
                break
    return spec


def fuzz(*, seconds: float, sites: int | None, seed: int, exporters: Sequence[str], tell: bool = True) -> Counts:
    """Try random attentions until the time is up or enough were tried."""
    rng, counts, seen = random.Random(seed), Counts(), Counter[str]()
    end, number = time.monotonic() + seconds, 0
    with shared_proofs({}):
        while time.monotonic() < end and (sites is None or counts.tried < sites):
            exporter = exporters[number % len(exporters)]
            specs = [draw(rng) for _ in range(GROUP[exporter])]
            if exporter == "torchscript":
                specs = [for_older_exporter(s) for s in specs]
            target = rng.choices(list(TARGETS), (6, 1, 3))[0]
            if exporter == "torchscript" and target == "portable":
                target = "cpu"  # that exporter has no opset 23
            case = {"seed": seed * 100_003 + number, "target": target, "exporter": exporter}
            number += 1
            result = trial(specs, **case)
            if result.broken and len(specs) > 1:
                for spec in specs:
                    _one(spec, trial([spec], **case), counts, case, seen)
                continue
            if exporter == "torchscript" and result.broken.startswith("export"):
                counts.not_exported += 1
                continue
            counts.add(result, len(specs))
            if len(specs) == 1 and result.broken:
                _report(specs[0], result.broken, counts, case, seen)
            for found in result.found:
                if found.problem:
                    _report(found.spec, found.problem, counts, case, seen)
            if tell and number % 10 == 0:
                _tell(counts)
    return counts


def _one(spec: AttentionSpec, result: Trial, counts: Counts, case: dict[str, Any], seen: Counter[str]) -> None:
    counts.add(result, 1)
    trouble = result.broken or result.found[0].problem
    if trouble:
        _report(spec, trouble, counts, case, seen)


def _report(spec: AttentionSpec, trouble: str, counts: Counts, case: dict[str, Any], seen: Counter[str]) -> None:
    """Shrink a failure, print it and keep it, one of a kind."""
    kind = _kind(trouble)
    seen[kind] += 1
    if seen[kind] > 1:
        return

    def fails(candidate: AttentionSpec) -> bool:
        again = trial([candidate], **case)
        now = again.broken or again.found[0].problem
        return _kind(now) == kind

    alone = fails(spec)
    small = shrink(spec, fails) if alone else spec
    source = module_source(small)
    counts.cases.append({"trouble": trouble, "alone": alone, **case, "spec": repr(small), "source": source})
    print(f"\n== {trouble}\n{case} alone={alone}\n{small}\n{source}", flush=True)


def _kind(trouble: str) -> str:
    """A failure without its numbers and its place."""
    return "".join(c for c in trouble.split("): ")[-1] if not c.isdigit())[:40]


def _tell(counts: Counts) -> None:
    print(
        f"{counts.tried} tried, {sum(counts.fused.values())} fused, {sum(counts.declined.values())} declined, "
        f"{counts.overlooked} overlooked, {sum(counts.broken.values())} broken, {counts.wrong} wrong",
        file=sys.stderr,
        flush=True,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 1 when anything was wrong or broke, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--sites", type=int, default=None, help="stop after this many attentions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=None, help="write the counts as JSON")
    parser.add_argument("--exporter", choices=[*GROUP, "both"], default="both")
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    exporters = ["torch.export"] + ["torchscript"] * 40 if given.exporter == "both" else [given.exporter]
    counts = fuzz(seconds=given.seconds, sites=given.sites, seed=given.seed, exporters=exporters)
    _tell(counts)
    text = json.dumps(counts.as_json(), indent=2)
    if given.report is not None:
        given.report.write_text(text + "\n")
    else:
        print(text)
    return 1 if counts.wrong or counts.broken else 0


if __name__ == "__main__":
    sys.exit(main())
