"""The terminal summary of a report: 80 columns, verdict first, readable without colour."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .memory import human_bytes, human_count
from .report import Comparison, LatencyReport, ParityReport, Profile, Report, Site, SweepPoint, Verdict
from .sensitivity import SENSITIVITY
from .words import counted

__all__ = ["SiteGroup", "group_sites", "in_words", "render"]

_WIDTH: Final = 80
_CENSUS_ROWS: Final = 14
_LISTED_DECLINES: Final = 12
_LISTED_FAILURES: Final = 6
_SLOWEST: Final = 6
_STYLES: Final[dict[str, str]] = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "not-run": "yellow",
}
_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


@dataclass(frozen=True, slots=True)
class SiteGroup:
    """Sites that differ only by the layer they are in.

    Attributes:
        sites: The members, in the model's order.
        where: Their module path, layer numbers as a range ("encoder.layer.0-5.attention").
    """

    sites: tuple[Site, ...]
    where: str

    @property
    def error(self) -> float | None:
        """Largest error of the members; None if none was measured."""
        return max((s.error for s in self.sites if s.error is not None), default=None)


def render(report: Report, console: Console) -> None:
    """Print ``report`` on ``console``."""
    parts: list[Text | Table] = [_headline(report), _digest(report)]
    parts += _sites(report.sites)
    parts += _census(report.census_before, report.census_after)
    parts += _parity(report.parity)
    parts += _items("First wrong step", [] if report.culprit is None else [report.culprit.sentence()])
    parts += _latency(report.latency)
    parts += _items("Not run", (f"{what}: {why}" for what, why in report.not_run.items()))
    parts += _items("Assumes", (f"{name}: {said}" for name, said in report.assumptions.items()))
    parts += _items("Warnings", report.warnings)
    parts += _items("Stages", [_stages(report)] if report.stages else [])
    parts += _items("Files", _files(report))
    for part in parts:
        console.print(_indented(part), width=min(_WIDTH, console.width), highlight=False)


def _indented(part: Text | Table) -> Text | Table | Padding:
    """Keep the indent of a line on the lines it wraps to."""
    if isinstance(part, Table) or not part.plain.startswith("  "):
        return part
    return Padding(part[2:], (0, 0, 0, 2))


def group_sites(sites: Sequence[Site]) -> tuple[SiteGroup, ...]:
    """Put together sites with the same outcome, source and module path up to layer numbers."""
    groups: dict[tuple[object, ...], list[Site]] = {}
    for site in sites:
        path = _NUMBER.sub("#", site.module_path or site.name)
        key = (path, site.status, site.op, site.kernel, site.rule, site.reason, site.source)
        groups.setdefault(key, []).append(site)
    return tuple(SiteGroup(tuple(found), _where(found)) for found in groups.values())


def _where(sites: Sequence[Site]) -> str:
    """One path for all: numbers that differ are written as a range, or as a list where they have gaps."""
    paths = [s.module_path or s.name for s in sites]
    columns = list(zip(*(_NUMBER.findall(p) for p in paths), strict=True))
    spans = iter([_span([int(n) for n in column]) for column in columns])
    return _NUMBER.sub(lambda _: next(spans), paths[0])


def _span(numbers: Sequence[int]) -> str:
    unique = sorted(set(numbers))
    if len(unique) == 1:
        return str(unique[0])
    if unique == list(range(unique[0], unique[-1] + 1)):
        return f"{unique[0]}-{unique[-1]}"
    text = ",".join(map(str, unique))
    return text if len(text) <= 16 else f"{unique[0]}..{unique[-1]}"


def _headline(report: Report) -> Text:
    line = _verdict(report.verdict)
    line.append(f"  {report.model or report.source}", style="bold")
    made = f"  {report.command} of {report.source}" if report.source != report.model else f"  {report.command}"
    return line.append(f"{made}, target {report.target}")


def _digest(report: Report) -> Text:
    parts = []
    if report.sites:
        parts.append(f"{len(report.fused)} of {len(report.sites)} attentions fused")
    before, after = sum(report.census_before.values()), sum(report.census_after.values())
    if before or after:
        parts.append(f"{before} -> {after} nodes")
    if report.parity is not None:
        worst = report.parity.worst
        numbers = worst is not None and worst.needed is not None
        needed = f", needs {_short(worst.needed)} of {_short(worst.granted)}" if worst and numbers else ""
        parts.append(f"parity {report.parity.verdict}{needed}")
    if report.latency is not None:
        parts += [
            f"{r.value:.2f}x {r.of}'s speed"
            for r in report.latency.ratios
            if r.of in ("eager", "unfused") and r.verdict != "inconclusive"
        ]
    return Text("  ".join([" · ".join(parts)] if parts else ["nothing was measured"]), overflow="fold")


def _sites(sites: Sequence[Site]) -> list[Text | Table]:
    if not sites:
        return []
    table = _table("n", ("where", "became", "kernel", "error"), right=("n", "error"))
    groups = group_sites(sites)
    for group in groups:
        first = group.sites[0]
        where = Text(group.where, overflow="fold")
        if first.source:
            where.append(f"\n{_short_source(first.source)}", style="dim")
        fused = first.status == "fused"
        outcome = _plain_op(first.op) if fused else f"DECLINED {first.reason or ''}".strip()
        table.add_row(
            str(len(group.sites)),
            where,
            Text(outcome, style="green" if fused else "red", overflow="fold"),
            first.kernel or "-",
            _short(group.error),
        )
    return [_title("Attention sites"), table, *_declined([g for g in groups if g.sites[0].status == "declined"])]


def _declined(groups: Sequence[SiteGroup]) -> list[Text]:
    lines = []
    for group in groups[:_LISTED_DECLINES]:
        site = group.sites[0]
        line = Text("  ").append(f"{site.reason or 'declined'}", style="bold red").append(f" at {group.where}")
        if site.source:
            line.append(f" ({site.source})")
        if site.detail:
            line.append(f": {site.detail}")
        if site.nearest:
            line.append(f"; nearest: {_plain_op(site.nearest)}")
        if site.rule:
            line.append(f"; more: deployml explain {site.rule}")
        lines.append(line)
    if len(groups) > _LISTED_DECLINES:
        lines.append(Text(f"  and {len(groups) - _LISTED_DECLINES} more kinds in the report file"))
    return lines


def _census(before: Mapping[str, int], after: Mapping[str, int]) -> list[Text | Table]:
    names = [n for n in dict.fromkeys([*before, *after]) if before.get(n, 0) != after.get(n, 0)]
    if not names:
        return []
    names.sort(key=lambda n: (-abs(after.get(n, 0) - before.get(n, 0)), n))
    table = _table("operator", ("before", "after"), right=("before", "after"))
    for name in names[:_CENSUS_ROWS]:
        table.add_row(_plain_op(name), str(before.get(name, 0)), str(after.get(name, 0)))
    rest = names[_CENSUS_ROWS:]
    if rest:
        sums = [str(sum(census.get(n, 0) for n in rest)) for census in (before, after)]
        table.add_row(f"{len(rest)} more that changed", *sums)
    table.add_row("all nodes", str(sum(before.values())), str(sum(after.values())), style="bold")
    return [_title("Operators that changed"), table]


def _parity(parity: ParityReport | None) -> list[Text | Table]:
    if parity is None:
        return []
    cases = len({c.case for c in parity.comparisons if c.verdict != "not-run"} - {SENSITIVITY})
    head = _title("Parity").append(f" against {parity.reference}, {cases} cases: ").append(_verdict(parity.verdict))
    lines = [head]
    if len(parity.nodes) > 1:
        lines.append(Text(f"  ran on {in_words(parity.nodes)}"))
    for name in dict.fromkeys(c.output for c in parity.comparisons):
        found = [c for c in parity.comparisons if c.output == name and c.needed is not None]
        if found:
            lines.append(_parity_line(name, found))
    failures = [c for c in parity.comparisons if c.verdict == "fail"]
    lines += [_failure_line(c) for c in failures[:_LISTED_FAILURES]]
    if len(failures) > _LISTED_FAILURES:
        lines.append(Text(f"  and {len(failures) - _LISTED_FAILURES} more failures in the report file"))
    return [*lines, *(Text(f"  note: {note}") for note in parity.notes)]


def _parity_line(name: str, found: Sequence[Comparison]) -> Text:
    worst = max(found, key=lambda c: (c.verdict == "fail", c.needed or 0.0))
    line = Text(f"  {name}: needs {_short(worst.needed)} of {_short(worst.granted)} ({worst.basis})")
    line.append(f" at {worst.case}")
    cosines = [c.cosine for c in found if c.cosine is not None]
    if cosines:
        line.append(f", cosine >= {_floor(min(cosines))}")
    shares = [c.top1 for c in found if c.top1 is not None]
    return line.append(f", top-1 equal in {min(shares):.1%}") if shares else line


def _failure_line(found: Comparison) -> Text:
    line = Text("  ").append("FAIL", style=_STYLES["fail"]).append(f" {found.output} at {found.case}")
    if found.needed is not None:
        line.append(f": needs {_short(found.needed)}, granted {_short(found.granted)}")
    if found.worst:
        line.append(f", worst at {list(found.worst)}")
    return line.append(f"; {found.note}") if found.note else line


def _latency(latency: LatencyReport | None) -> list[Text | Table]:
    if latency is None:
        return []
    shapes = ", ".join(f"{name}{list(shape)}" for name, shape in latency.shapes.items())
    head = _title("Latency").append(f" {latency.threads} threads, {shapes}: ").append(_verdict(latency.verdict))
    notes = [Text(f"  note: {note}") for note in latency.notes]
    if not latency.contenders:
        return [head, *notes]
    ratios = {r.of: r for r in latency.ratios}
    base = latency.ratios[0].over if latency.ratios else latency.contenders[0].name
    columns = ("median ms", "p90", "p99", f"time over {base}", "95 % interval")
    table = _table("contender", columns, right=columns)
    for one in latency.contenders:
        ratio = ratios.get(one.name)
        paired = ("1.00", "") if ratio is None else (f"{ratio.value:.2f}", f"{ratio.low:.2f} - {ratio.high:.2f}")
        times = (_milliseconds(t) for t in (one.median_ms, one.p90_ms, one.p99_ms))
        place = in_words(one.nodes) if len(one.nodes) > 1 else _short_provider(one.provider)
        table.add_row(Text(f"{one.name}\n").append(place, style="dim"), *times, *paired)
    return [head, table, *_memory(latency), *_effort(latency), *_slowest(latency.profile), *_sweep(latency), *notes]


def _memory(latency: LatencyReport) -> list[Text]:
    held = [f"{c.name} {human_bytes(c.peak_memory)}" for c in latency.contenders if c.peak_memory is not None]
    return [Text(f"  peak memory of loading and running: {', '.join(held)}")] if held else []


def _effort(latency: LatencyReport) -> list[Text]:
    """Operations of one run, and the share of the machine's peak they are done at."""
    if latency.flops is None:
        return []
    said = f"  {human_count(latency.flops)}FLOP a run"
    if latency.mfu is not None and latency.peak_flops is not None:
        said += f", {_share(latency.mfu)} of the {human_count(latency.peak_flops)}FLOP/s a product reaches here"
    return [Text(said)]


def _slowest(profile: Profile | None) -> list[Text | Table]:
    """The operators that take most of the time."""
    if profile is None or not profile.ops or profile.total_ms <= 0:
        return []
    table = _table(
        "operator (profiled)", ("nodes", "ms", "share", "GFLOP/s"), right=("nodes", "ms", "share", "GFLOP/s")
    )
    for one in profile.ops[:_SLOWEST]:
        rate = "" if not one.flops or one.ms <= 0 else f"{one.flops / one.ms / 1e6:.1f}"
        table.add_row(one.op, str(one.nodes), _milliseconds(one.ms), _share(one.ms / profile.total_ms), rate)
    return [Text(""), table]


def _sweep(latency: LatencyReport) -> list[Text | Table]:
    if not latency.sweep:
        return []
    names = list(dict.fromkeys(n for point in latency.sweep for n in point.medians))
    table = _table("size", [f"{n} ms" for n in names], right=[f"{n} ms" for n in names])
    for point in latency.sweep:
        times = (_milliseconds(point.medians[n]) if n in point.medians else "-" for n in names)
        table.add_row(_sizes(point), *times)
    failed = [f"  note: {_sizes(p)} was not timed: {p.note}" for p in latency.sweep if p.note]
    return [Text(""), table, *map(Text, failed)]


def _sizes(point: SweepPoint) -> str:
    return ", ".join(f"{name} {size}" for name, size in point.sizes.items())


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _stages(report: Report) -> str:
    def one(name: str, seconds: float, peak: int | None) -> str:
        return f"{name} {seconds:.1f} s" + (f" ({human_bytes(peak)})" if peak else "")

    return ", ".join(one(s.name, s.seconds, s.peak_rss) for s in report.stages)


def _files(report: Report) -> list[str]:
    lines = [f"{role}: {name}" for role, name in report.files.items()]
    return lines + [f"needs op library: {name}" for name in report.libraries]


def _items(title: str, lines: Iterable[str]) -> list[Text]:
    found = [Text(f"  {line}") for line in lines]
    return [_title(title), *found] if found else []


def _table(first: str, others: Sequence[str], *, right: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for name in (first, *others):
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _title(text: str) -> Text:
    return Text(f"\n{text}", style="bold", end="\n")


def _verdict(verdict: Verdict) -> Text:
    return Text(verdict.upper().replace("-", " "), style=_STYLES[verdict])


def _short_source(source: str) -> str:
    """The last folder and the file; the report file has the whole path."""
    return "/".join(source.split("/")[-2:])


def _plain_op(name: str | None) -> str:
    return (name or "-").removeprefix("com.microsoft::").removeprefix("ai.onnx::").removeprefix("::")


def _short_provider(name: str) -> str:
    return name.removesuffix("ExecutionProvider")


def in_words(nodes: Mapping[str, int]) -> str:
    """{"CUDAExecutionProvider": 40, "CPUExecutionProvider": 2} as "CUDA 40 nodes, CPU 2 nodes"."""
    parts = (f"{_short_provider(name)} {counted(count, 'node')}" for name, count in nodes.items())
    return ", ".join(parts)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}" if value else "0"


def _floor(cosine: float) -> str:
    """Cut, never round up: 0.999999 must not be shown as 1."""
    return f"{int(cosine * 1e7) / 1e7:.7f}"


def _milliseconds(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"
