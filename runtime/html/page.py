"""The report as one self-contained page: no script, no network, nothing of the machine that made it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..memory import human_bytes
from ..picture import Picture
from ..report import Ratio, Report
from ..words import counted
from . import effort, evidence, sites
from .graph import draw, is_broad
from .markup import Markup, join, tag
from .numbers import count, factor, power
from .style import STYLE
from .words import careful, headline, label, who

__all__ = ["html_report"]

_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "not-run": "–"}
#: No script, no frame, no request: what a hostile name could not do anyway, the browser refuses too.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def html_report(report: Report, *, before: Picture | None = None, after: Picture | None = None) -> str:
    """Render a report as an HTML page.

    Args:
        report: What happened.
        before: One layer of the graph before fusion, to be drawn.
        after: The same layer after.

    Returns:
        The whole page as text. The same report gives the same text.
    """
    body = [
        _head(report),
        _tiles(report),
        sites.section(report),
        _pictures(before, after),
        evidence.census(report.census_before, report.census_after),
        evidence.parity(report.parity, report.culprit),
        evidence.latency(report.latency),
        effort.section(report.latency, report.sites),
        _caveats(report),
        _making(report),
        _footer(report),
    ]
    return "<!doctype html>\n" + tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", name="referrer", content="no-referrer"),
            tag("link", rel="icon", href="data:,"),
            tag("title", f"{label(report.verdict)}: {report.model or report.source}"),
            tag("style", Markup(STYLE)),
        ),
        tag("body", tag("main", *body)),
        lang="en",
    )


def _head(report: Report) -> Markup:
    name = report.model or report.source
    made = f"{report.command} of {report.source}" if report.source != report.model else report.command
    return tag(
        "header",
        tag(
            "div",
            tag("h1", name),
            tag("span", f"{made}, target {report.target}", class_="soft small"),
            class_="top",
        ),
        tag(
            "div",
            tag("span", _MARKS[report.verdict], class_=f"mark {report.verdict}", aria_hidden="true"),
            tag("div", tag("strong", label(report.verdict), class_=report.verdict), tag("p", headline(report))),
            class_="verdict",
        ),
    )


def _tiles(report: Report) -> Markup | None:
    found = []
    if report.sites:
        found.append((f"{len(report.fused)} of {len(report.sites)}", "attentions fused"))
    old, new = sum(report.census_before.values()), sum(report.census_after.values())
    if old and new:
        found.append((f"{count(old)} → {count(new)}", "graph nodes"))
    if report.parity is not None and report.parity.worst is not None:
        worst = report.parity.worst
        found.append((power(worst.needed), f"largest difference; {power(worst.granted)} granted"))
    if report.latency is not None:
        for ratio in report.latency.ratios:
            if ratio.of in ("eager", "unfused"):
                found.append(_ratio_tile(ratio))
    if not found:
        return None
    return tag(
        "div",
        *(tag("div", tag("b", big), tag("span", small), class_="tile") for big, small in found),
        class_="tiles",
    )


def _ratio_tile(ratio: Ratio) -> tuple[str, str]:
    interval = f"95 % interval {ratio.low:.2f} to {ratio.high:.2f}"
    if ratio.low <= 1 <= ratio.high:
        return "even", f"with {who(ratio.of)}, as far as can be measured; {interval}"
    if careful(ratio):
        least = ratio.low if ratio.value > 1 else ratio.high
        return f"{'≥' if ratio.value > 1 else '≤'} {factor(least)}", f"the speed of {who(ratio.of)}; {interval}"
    return factor(ratio.value), f"the speed of {who(ratio.of)}; {interval}"


def _pictures(before: Picture | None, after: Picture | None) -> Markup | None:
    shown = [p for p in (before, after) if p is not None and p.nodes]
    if not shown:
        return None
    figures = [tag("figure", tag("figcaption", _caption(p)), tag("div", draw(p), class_="frame")) for p in shown]
    lead = "One attention module, drawn from the two graphs. Tinted: what fusion replaced, and what it became."
    return tag(
        "section",
        tag("h2", "One layer, before and after"),
        tag("p", lead, class_="soft"),
        tag("div", *figures, class_="pictures broad" if any(map(is_broad, shown)) else "pictures"),
        id="picture",
    )


def _caption(picture: Picture) -> str:
    rest = f" ({picture.left_out} more are not drawn)" if picture.left_out else ""
    return f"{picture.title}: {counted(picture.operators, 'operator')}{rest}"


def _caveats(report: Report) -> Markup | None:
    parts = [
        _pairs("Assumptions", report.assumptions),
        _list("Warnings", report.warnings),
        _pairs("Not run", report.not_run),
    ]
    if not any(parts):
        return None
    return tag("section", tag("h2", "What to know"), *parts, id="caveats")


def _pairs(title: str, pairs: Mapping[str, str]) -> Markup | None:
    if not pairs:
        return None
    items = [join(tag("dt", name), tag("dd", said)) for name, said in pairs.items()]
    return join(tag("h3", title), tag("dl", *items))


def _list(title: str, lines: Sequence[str]) -> Markup | None:
    return join(tag("h3", title), tag("ul", *(tag("li", line) for line in lines))) if lines else None


def _making(report: Report) -> Markup | None:
    libraries = {f"op library {i}": name for i, name in enumerate(report.libraries, start=1)}
    parts = (
        _pairs("Files", {**report.files, **libraries}),
        _pairs("Versions", report.versions),
        _rewrites(report),
        _refusals(report),
        _passes(report),
        _stages(report),
    )
    return tag("section", tag("h2", "How it was made"), *parts, id="making") if any(parts) else None


def _rewrites(report: Report) -> Markup | None:
    if not report.rewrites:
        return None
    rules = Counter((r.rule, r.emits) for r in report.rewrites)
    lines = []
    for (rule, emits), times in sorted(rules.items()):
        errors = [r.error for r in report.rewrites if (r.rule, r.emits) == (rule, emits) and r.error is not None]
        lines.append((rule, emits or "–", count(times), power(max(errors)) if errors else "exact or cached"))
    title = f"{count(len(report.rewrites))} rewrites, each proven by running both forms"
    return _folded(title, (("Rule", None), ("Makes", None), ("Times", "num"), ("Largest error", "num")), lines)


def _refusals(report: Report) -> Markup | None:
    kinds = Counter((d.rule, d.reason, d.rolled_back) for d in report.declines)
    if not kinds:
        return None
    lines = [
        (rule, f"{reason}, rolled back" if back else reason, count(times))
        for (rule, reason, back), times in sorted(kinds.items())
    ]
    title = f"{count(len(report.declines))} places where a rule looked and declined"
    return _folded(title, (("Rule", None), ("Reason", None), ("Times", "num")), lines)


def _passes(report: Report) -> Markup | None:
    lines = [
        (
            p.name + (f" ({p.note})" if p.note else ""),
            f"{p.seconds:.2f}",
            count(p.rewrites),
            count(p.nodes_after),
        )
        for p in report.passes
    ]
    columns = (("Pass", None), ("Seconds", "num"), ("Rewrites", "num"), ("Nodes after", "num"))
    return _folded(f"{len(lines)} passes", columns, lines) if lines else None


def _stages(report: Report) -> Markup | None:
    lines = [(s.name, f"{s.seconds:.2f}", human_bytes(s.peak_rss) if s.peak_rss else "–") for s in report.stages]
    columns = (("Stage", None), ("Seconds", "num"), ("Peak memory", "num"))
    return _folded(f"{len(lines)} stages", columns, lines) if lines else None


def _folded(title: str, columns: Sequence[tuple[str, str | None]], lines: Sequence[Sequence[str]]) -> Markup:
    head = tag("tr", *(tag("th", text, class_=kind) for text, kind in columns))
    kinds = [kind for _, kind in columns]
    body = [tag("tr", *(tag("td", c, class_=k) for c, k in zip(line, kinds, strict=True))) for line in lines]
    table = tag("table", tag("thead", head), tag("tbody", *body), class_="small")
    return tag("details", tag("summary", title), table)


def _footer(report: Report) -> Markup:
    version = report.versions.get("deployml")
    return tag("footer", f"Made by deployml{f' {version}' if version else ''}. Report form {report.schema}.")
