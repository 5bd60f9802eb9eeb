"""The long run of the differential suite: ``python -m tests.property.fuzz --seconds 600 --seed 1 --report out.json``.

Draws random attention modules, exports and fuses them, and compares them with eager in float64 at sizes the trace
did not see. Whatever is wrong, breaks or is overlooked is shrunk to a module of one attention and printed as source.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .attention_source import module_source
from .attention_spec import AttentionSpec, draw, for_half, for_older_exporter, simpler
from .attention_trial import TARGETS, quick, trial
from .fuzz_counts import Counts

__all__ = ["Lane", "fuzz", "main", "shrink"]

#: Attentions of one module. Torch's older exporter loses the shapes of large modules.
GROUP = {"torch.export": 24, "torchscript": 1, "written": 24}
#: Of so many written modules one is fused with its heads in another order too.
HEADS_EVERY = 8
#: What is said of an attention that the journal does not know.
UNRECORDED = "left no record in the journal"
#: Trials a shrink may cost.
SHRINK_LIMIT = 24


@dataclass(frozen=True)
class Lane:
    """One way to try a module: exporter and element type, and how often among the others."""

    exporter: str
    dtype: str
    weight: int

    @property
    def name(self) -> str:
        """ "written", "written float16", ..."""
        return self.exporter if self.dtype == "float32" else f"{self.exporter} {self.dtype}"


#: torch.export takes a second and a half for each attention, so it has the smaller share.
LANES = (
    Lane("written", "float32", 80),
    Lane("written", "float16", 16),
    Lane("written", "bfloat16", 8),
    Lane("torch.export", "float32", 2),
    Lane("torch.export", "float16", 1),
    Lane("torchscript", "float32", 4),
)


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


@dataclass
class _Run:
    """A run under way."""

    counts: Counts = field(default_factory=Counts)
    seen: Counter[str] = field(default_factory=Counter)

    def try_all(self, specs: Sequence[AttentionSpec], lane: Lane, seed: int, target: str) -> None:
        """Try a module; one that breaks is halved until the attentions that break it stand alone."""
        heads = lane.exporter == "written" and seed % HEADS_EVERY == 0
        case = {"seed": seed, "target": target, "exporter": lane.exporter, "dtype": lane.dtype, "heads": heads}
        result = trial(specs, **case)
        if result.broken and len(specs) > 1:
            half = len(specs) // 2
            self.try_all(specs[:half], lane, seed, target)
            self.try_all(specs[half:], lane, seed, target)
            return
        if lane.exporter == "torchscript" and result.broken.startswith("export"):
            self.counts.not_exported += 1
            return
        self.counts.add(result, lane.name, len(specs))
        if result.broken:
            self._report(specs[0], result.broken, case)
        for found in result.found:
            if found.problem or found.site is None:
                self._report(found.spec, found.problem or UNRECORDED, case)

    def _report(self, spec: AttentionSpec, trouble: str, case: dict[str, object]) -> None:
        """Print a failure; the first of a kind is shrunk and kept."""
        kind = _kind(trouble)
        self.seen[kind] += 1
        if self.seen[kind] > 1:
            print(f"\n== {trouble}\n{case}\n{spec}", flush=True)
            return

        def fails(candidate: AttentionSpec) -> bool:
            again = trial([candidate], **case)  # type: ignore[arg-type]
            now = again.broken or again.found[0].problem or (UNRECORDED if again.found[0].site is None else "")
            return _kind(now) == kind

        alone = fails(spec)
        small = shrink(spec, fails) if alone else spec
        source = module_source(small)
        kept = {"trouble": trouble, "alone": alone, **case, "spec": repr(small), "source": source}
        self.counts.cases.append(kept)
        print(f"\n== {trouble}\n{case} alone={alone}\n{small}\n{source}", flush=True)


def _kind(trouble: str) -> str:
    """A failure without its numbers and its place."""
    return "".join(c for c in trouble.split("): ")[-1] if not c.isdigit())[:40]


def fuzz(
    *,
    seconds: float,
    sites: int | None,
    seed: int,
    lanes: Sequence[Lane] = LANES,
    group: int | None = None,
    only: Mapping[str, Sequence[Any]] | None = None,
    tell: Callable[[Counts], None] | None = None,
) -> Counts:
    """Try random attentions until the time is up or enough were tried.

    Args:
        seconds: Time box.
        sites: Stop after this many attentions.
        seed: Decides everything that is drawn.
        lanes: What to try, by weight.
        group: Attentions of one module; None for what suits the exporter.
        only: Names of fields and the only values that are drawn for them.
        tell: Called with the counts now and then.
    """
    rng, run, number = random.Random(seed), _Run(), 0
    end = time.monotonic() + seconds
    with quick({}):
        while time.monotonic() < end and (sites is None or run.counts.tried < sites):
            lane = rng.choices(lanes, [x.weight for x in lanes])[0]
            count = min(group or GROUP[lane.exporter], GROUP[lane.exporter])
            specs = [_fitting(draw(rng, only), lane) for _ in range(count)]
            target = rng.choices(list(TARGETS), (6, 1, 3))[0]
            if lane.exporter == "torchscript" and target == "portable":
                target = "cpu"  # that exporter has no opset 23
            run.try_all(specs, lane, seed * 100_003 + number, target)
            number += 1
            gc.collect()
            if tell is not None and number % 10 == 0:
                tell(run.counts)
    return run.counts


def _fitting(spec: AttentionSpec, lane: Lane) -> AttentionSpec:
    if lane.exporter == "torchscript":
        spec = for_older_exporter(spec)
    return for_half(spec) if lane.dtype != "float32" else spec


def _only(text: str) -> tuple[str, tuple[Any, ...]]:
    """ "size=8,16" as the name of a field and its values; masks that act together are joined by "+"."""
    name, _, values = text.partition("=")
    plain = getattr(AttentionSpec(), name, None)
    if plain is None or not values:
        raise argparse.ArgumentTypeError(f"'{text}' is not FIELD=VALUE with a field of AttentionSpec")
    if isinstance(plain, tuple):
        return name, tuple(tuple(value.split("+")) for value in values.split(","))
    if isinstance(plain, bool):
        return name, tuple(value == "True" for value in values.split(","))
    return name, tuple(type(plain)(value) for value in values.split(","))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line. Returns 1 when anything was wrong or broke, else 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--sites", type=int, default=None, help="stop after this many attentions")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, default=None, help="write the counts as JSON, also on the way")
    parser.add_argument("--page", type=Path, default=None, help="write the counts as a page")
    parser.add_argument("--lane", action="append", choices=[lane.name for lane in LANES], default=None)
    parser.add_argument("--group", type=int, default=None, help="attentions of one module at most")
    parser.add_argument(
        "--only",
        action="append",
        type=_only,
        default=[],
        metavar="FIELD=VALUE[,VALUE]",
        help="fix a field of AttentionSpec",
    )
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    lanes = [lane for lane in LANES if given.lane is None or lane.name in given.lane]

    def tell(counts: Counts) -> None:
        print(counts.line(), file=sys.stderr, flush=True)
        if given.report is not None:
            given.report.write_text(json.dumps(counts.as_json(), indent=2) + "\n")
        if given.page is not None:
            given.page.write_text(counts.page([given.seed]), encoding="utf-8")

    counts = fuzz(
        seconds=given.seconds,
        sites=given.sites,
        seed=given.seed,
        lanes=lanes,
        group=given.group,
        only=dict(given.only),
        tell=tell,
    )
    tell(counts)
    if given.report is None:
        print(json.dumps(counts.as_json(), indent=2))
    return 1 if counts.wrong or counts.broken else 0


if __name__ == "__main__":
    sys.exit(main())
