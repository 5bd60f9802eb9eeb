"""The measured sections: operators before and after, parity with its error plot, latency with its intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from ..report import Comparison, Contender, Culprit, LatencyReport, ParityReport
from ..summary import in_words
from . import charts
from .markup import Markup, breakable, join, tag
from .numbers import ceiling_percent, count, factor, floor_cosine, log_ticks, milliseconds, power
from .words import case_count, label, latency_sentence, parity_sentence, plain_op, ratio_sentence

__all__ = ["census", "latency", "parity"]

_CENSUS_ROWS: Final = 18
_FAILURES: Final = 12
#: Least distance of two labels of the ratio plot, in per cent of its width.
_TICK_GAP: Final = 16.0


def census(before: Mapping[str, int], after: Mapping[str, int]) -> Markup | None:
    """Operators that changed, as pairs of bars; the others folded away. None when nothing is known."""
    names = list(dict.fromkeys([*before, *after]))
    if not names:
        return None
    changed = [n for n in names if before.get(n, 0) != after.get(n, 0)]
    changed.sort(key=lambda n: (-abs(after.get(n, 0) - before.get(n, 0)), n))
    same = sorted(n for n in names if n not in changed)
    old, new = sum(before.values()), sum(after.values())
    less = f", {1 - new / old:.0%} fewer" if 0 < new < old else ""
    key = tag("div", _key("k0", "before"), _key("k1", "after"), class_="key")
    return tag(
        "section",
        tag("h2", "Operators"),
        tag("p", f"{count(old)} nodes before, {count(new)} after{less}.", class_="soft"),
        key,
        _census_rows(changed[:_CENSUS_ROWS], before, after),
        _folded(f"{len(changed) - _CENSUS_ROWS} more that changed", changed[_CENSUS_ROWS:], before, after),
        _folded(f"{len(same)} that did not change", same, before, after),
        id="operators",
    )


def _folded(title: str, names: Sequence[str], before: Mapping[str, int], after: Mapping[str, int]) -> Markup | None:
    return tag("details", tag("summary", title), _census_rows(names, before, after)) if names else None


def _census_rows(names: Sequence[str], before: Mapping[str, int], after: Mapping[str, int]) -> Markup:
    most = max((max(before.get(n, 0), after.get(n, 0)) for n in names), default=0)
    cells = []
    for name in names:
        a, b = before.get(name, 0), after.get(name, 0)
        shown = tag("span", breakable(plain_op(name)), class_="mono")
        cells.append((shown, charts.bars(most, a, b), f"{count(a)} → {count(b)}"))
    return charts.rows(cells, title="operator counts")


def parity(found: ParityReport | None, culprit: Culprit | None = None) -> Markup | None:
    """The verdict, what made the results wrong, one error plot an output, failures in words."""
    if found is None:
        return None
    outputs = dict.fromkeys(c.output for c in found.comparisons if c.needed is not None)
    scale = _error_scale([c for c in found.comparisons if c.needed is not None])
    key = tag("div", _key("kd", "needed"), _key("kl", "granted"), class_="key")
    failures = [c for c in found.comparisons if c.verdict == "fail"]
    return tag(
        "section",
        _titled("Parity", found.verdict),
        tag("p", f"Compared with {found.reference} in {case_count(found)} cases. ", parity_sentence(found)),
        tag("div", tag("b", "First wrong step"), tag("div", culprit.sentence()), class_="note fail")
        if culprit
        else None,
        *(_failure(c) for c in failures[:_FAILURES]),
        _more(len(failures) - _FAILURES, "failures"),
        tag("p", f"It ran on {in_words(found.nodes)}.", class_="soft") if len(found.nodes) > 1 else None,
        key if outputs else None,
        *(_error_plot(name, [c for c in found.comparisons if c.output == name], scale) for name in outputs),
        _notes(found.notes),
        _not_compared(found.comparisons),
        id="parity",
    )


def _error_scale(judged: Sequence[Comparison]) -> charts.LogScale:
    values = [v for c in judged for v in (c.needed, c.granted) if v is not None and v > 0 and math.isfinite(v)]
    low, high = min(values, default=1e-8), max(values, default=1e-3)
    return charts.LogScale(10.0 ** math.floor(math.log10(low) - 0.3), 10.0 ** math.ceil(math.log10(high) + 0.2))


def _error_plot(name: str, found: Sequence[Comparison], scale: charts.LogScale) -> Markup:
    ticks = log_ticks(scale.low, scale.high)
    judged = [c for c in found if c.needed is not None]
    cosines = [c.cosine for c in judged if c.cosine is not None]
    shares = [c.top1 for c in judged if c.top1 is not None]
    said = [f"cosine at least {floor_cosine(min(cosines))}"] if cosines else []
    said += [f"same top choice in at least {math.floor(min(shares) * 1000) / 10:g} % of rows"] if shares else []
    said += list(dict.fromkeys(f"granted {power(c.granted)} {_basis(c)}" for c in judged))[:2]
    cells = [(c.case, _error_strip(c, scale, ticks), power(c.needed)) for c in judged]
    return join(
        tag("h3", "Output ", tag("span", name, class_="mono")),
        tag("p", "; ".join(said), class_="soft small"),
        charts.rows(cells, title=f"errors of {name}", head=("case", charts.log_axis(scale, ticks), "needed")),
    )


def _basis(found: Comparison) -> str:
    """Why that much was granted, without the part that differs from case to case."""
    return found.basis.partition(";")[0].strip()


def _error_strip(found: Comparison, scale: charts.LogScale, ticks: Sequence[float]) -> Markup:
    assert found.needed is not None
    return charts.dot_strip(
        scale,
        ticks,
        found.needed,
        found.granted,
        bad=found.verdict == "fail",
        title=f"{found.case}: needed {power(found.needed)}, granted {power(found.granted)}",
    )


def _failure(found: Comparison) -> Markup:
    numbers = "" if found.needed is None else f": needs {power(found.needed)}, granted {power(found.granted)}"
    worst = f", worst at {list(found.worst)}" if found.worst else ""
    nan = "" if found.nan_match else " NaN or infinity stands in other places than in the reference."
    what = "all outputs" if found.output == "*" else f"output “{found.output}”"
    return tag(
        "div",
        tag("b", f"Fails: {what} at {found.case}"),
        f"{numbers}{worst}.{nan}",
        tag("div", found.note, class_="soft small") if found.note else None,
        class_="note fail",
    )


def _not_compared(found: Sequence[Comparison]) -> Markup | None:
    skipped = dict.fromkeys((c.case, c.note or "no reason given") for c in found if c.verdict == "not-run")
    if not skipped:
        return None
    items = [tag("li", tag("b", case), f": {why}") for case, why in skipped]
    return tag("details", tag("summary", f"{len(items)} comparisons were not made"), tag("ul", *items))


def latency(found: LatencyReport | None) -> Markup | None:
    """The ratios as sentences and intervals, the times as bars, the share of the machine's peak."""
    if found is None:
        return None
    return tag(
        "section",
        _titled("Latency", found.verdict),
        tag("p", latency_sentence(found), class_="soft"),
        tag("ul", *(tag("li", ratio_sentence(r)) for r in found.ratios)) if found.ratios else None,
        _intervals(found),
        _times(found),
        _share_of_peak(found),
        _notes(found.notes),
        id="latency",
    )


def _intervals(found: LatencyReport) -> Markup | None:
    sound = [r for r in found.ratios if r.low > 0 and math.isfinite(r.high)]
    if not sound:
        return None
    low = min(1.0, *(r.low for r in sound)) / 1.15
    high = max(1.0, *(r.high for r in sound)) * 1.15
    scale = charts.LogScale(low, high)
    ticks = _apart(scale, [t for t in (1.0, 0.1, 0.2, 0.5, 2.0, 5.0, 10.0, 20.0, 50.0, 1.5, 3.0) if low <= t <= high])
    axis = charts.log_axis(scale, ticks, labels=[f"{t:g}×" for t in ticks])
    cells = [
        (
            f"{r.of}'s time over {r.over}'s",
            charts.span_strip(scale, ticks, r.low, r.value, r.high, title=ratio_sentence(r)),
            f"{factor(r.value)} ({r.low:.2f} – {r.high:.2f})",
        )
        for r in sound
    ]
    head = ("ratio, right of 1× means faster", axis, "95 % interval")
    return join(tag("h3", "Paired ratios"), charts.rows(cells, title="paired ratios", head=head))


def _apart(scale: charts.LogScale, wanted: Sequence[float]) -> list[float]:
    """The ticks, first come first served, whose labels do not touch on paper, the narrowest page."""
    kept: list[float] = []
    for tick in wanted:
        if all(abs(scale.at(tick) - scale.at(other)) >= _TICK_GAP for other in kept):
            kept.append(tick)
    return sorted(kept)


def _times(found: LatencyReport) -> Markup | None:
    if not found.contenders:
        return None
    longest = max(c.p99_ms for c in found.contenders)
    base = found.ratios[0].over if found.ratios else found.contenders[0].name
    cells = [
        (
            join(c.name, tag("span", f" {_place(c)}", class_="soft small")),
            charts.time_strip(
                longest,
                c.median_ms,
                c.p90_ms,
                c.p99_ms,
                base=c.name == base,
                title=f"{c.name}: median {milliseconds(c.median_ms)}, 90 % {milliseconds(c.p90_ms)}, "
                f"99 % {milliseconds(c.p99_ms)}, {count(c.runs)} runs",
            ),
            milliseconds(c.median_ms),
        )
        for c in found.contenders
    ]
    note = "Bars reach to the median, the lines to the 90th and 99th percentile."
    return join(
        tag("h3", "Time of one run"),
        tag("p", note, class_="soft small"),
        charts.rows(cells, title="times"),
    )


def _place(one: Contender) -> str:
    """The provider; all of them with their nodes where the graph is split."""
    return in_words(one.nodes) if len(one.nodes) > 1 else one.provider.removesuffix("ExecutionProvider")


def _share_of_peak(found: LatencyReport) -> Markup | None:
    if found.flops is None or not found.peak_flops or found.mfu is None:
        return None
    rate, peak = found.mfu * found.peak_flops, found.peak_flops
    bar = tag(
        "svg",
        tag("rect", x=0, y=6, width="100%", height=12, rx=2, class_="b0"),
        tag("rect", x=0, y=6, width=f"{min(100.0, 100 * found.mfu):.2f}%", height=12, rx=2, class_="b1"),
        class_="chart",
        height=24,
        role="img",
    )
    reached = f"{rate / 1e9:.3g} of {peak / 1e9:.3g} GFLOP/s measured on this machine"
    said = f"{found.flops / 1e9:.3g} GFLOP a run, {reached}."
    cells = [("share of measured peak (MFU)", bar, f"{found.mfu:.1%}")]
    return join(
        tag("h3", "Use of the machine"),
        tag("p", said, class_="soft small"),
        charts.rows(cells, title="share of peak"),
    )


def _titled(title: str, verdict: str) -> Markup:
    badge = tag("span", label(verdict), class_=f"badge {verdict}")  # type: ignore[arg-type]
    return tag("h2", title, " ", badge)


def _key(kind: str, text: str) -> Markup:
    return tag("span", tag("i", class_=kind), text)


def _notes(notes: Sequence[str]) -> Markup | None:
    return tag("ul", *(tag("li", note) for note in notes), class_="small soft") if notes else None


def _more(rest: int, what: str) -> Markup | None:
    return tag("p", f"And {rest} more {what}.", class_="soft small") if rest > 0 else None


def share_used(found: ParityReport) -> str | None:
    """The largest share of a granted tolerance that was used, in per cent, rounded up."""
    worst = found.worst
    if worst is None or worst.needed is None or worst.granted <= 0:
        return None
    return ceiling_percent(worst.needed / worst.granted)
