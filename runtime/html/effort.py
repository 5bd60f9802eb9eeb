"""Where the time goes: by operator, by attention site, and against what the machine can do (a roofline)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..memory import human_count
from ..report import LatencyReport, NodeTime, Profile, Site, SweepPoint
from ..summary import group_sites
from ..words import counted
from . import charts
from .markup import Markup, escape, join, tag
from .numbers import log_ticks, milliseconds
from .words import plain_op

__all__ = ["section"]

_SHOWN: Final = 12
#: Height of the roofline and of its margin below, in pixels; the width follows the page.
_HEIGHT: Final = 260
_FLOOR: Final = 230


def section(found: LatencyReport | None, sites: Sequence[Site]) -> Markup | None:
    """The section, or None where nothing was profiled."""
    if found is None or (found.profile is None and not found.sweep):
        return None
    profile = found.profile
    parts = (
        [] if profile is None or not profile.ops else [*_operators(profile), *_sites(profile, sites), *_roof(profile)]
    )
    return tag("section", tag("h2", "Where the time goes"), *parts, *_memory(found), *_sweep(found.sweep), id="effort")


def _operators(profile: Profile) -> list[Markup | None]:
    took = milliseconds(profile.total_ms)
    said = f"One run as onnxruntime's profiler counts it: {took}, the profiler's own cost included."
    cells = [
        (
            join(plain_op(one.op), tag("span", f" {counted(one.nodes, 'node')}", class_="soft small")),
            charts.share_bar(one.ms / profile.total_ms, title=f"{one.op}: {milliseconds(one.ms)}"),
            f"{milliseconds(one.ms)} · {_per_cent(one.ms / profile.total_ms)}",
        )
        for one in profile.ops[:_SHOWN]
        if profile.total_ms > 0
    ]
    return [tag("p", said, class_="soft"), tag("h3", "By operator"), charts.rows(cells, title="time by operator")]


def _sites(profile: Profile, sites: Sequence[Site]) -> list[Markup | None]:
    """Alike sites together: their time is the sum, and the bar its share of the whole run."""
    times = {node.name: node for node in profile.nodes}
    cells = []
    for group in group_sites(sites):
        known = [times[s.name] for s in group.sites if s.name in times and s.status == "fused"]
        if not known or profile.total_ms <= 0:
            continue
        total = math.fsum(n.ms for n in known)
        many = f" {len(known)} × {milliseconds(total / len(known))}" if len(known) > 1 else ""
        cells.append(
            (
                join(tag("span", group.where, class_="mono"), tag("span", many, class_="soft small")),
                charts.share_bar(total / profile.total_ms, title=f"{group.where}: {milliseconds(total)}"),
                f"{milliseconds(total)} · {_per_cent(total / profile.total_ms)}",
            )
        )
    if not cells:
        return []
    return [tag("h3", "By attention site"), charts.rows(cells, title="time by attention site")]


@dataclass(frozen=True, slots=True)
class _Plane:
    """Maps intensity to per cent from the left, and a rate to pixels from the top; both by logarithm."""

    x: charts.LogScale
    y: charts.LogScale

    def across(self, intensity: float) -> str:
        return f"{8 + 0.9 * self.x.at(intensity):.2f}%"

    def down(self, rate: float) -> float:
        return round(_FLOOR - (_FLOOR - 12) * self.y.at(rate) / 100, 1)


def _roof(profile: Profile) -> list[Markup | None]:
    peak, wide = profile.peak_flops, profile.peak_bytes
    points = [n for n in profile.nodes if n.flops and n.bytes > 0 and n.ms > 0]
    if not peak or not wide or not points:
        return []
    plane = _plane(points, peak, wide)
    slow, fast = peak / wide, peak
    left = plane.x.low
    roof = [
        _segment(plane, (left, left * wide), (slow, fast), "granted"),
        _segment(plane, (slow, fast), (plane.x.high, fast), "granted"),
    ]
    largest = max(n.ms for n in points)
    dots = [_dot(plane, node, largest) for node in sorted(points, key=lambda n: (_is_attention(n), -n.ms))]
    chart = tag(
        "svg",
        tag("title", "roofline: operations a second over operations a byte"),
        *_axes(plane),
        *roof,
        *dots,
        class_="chart roof",
        height=_HEIGHT,
        role="img",
    )
    said = (
        f"Each dot is a node, as wide as its time; the line is what this machine reached in this run: "
        f"{human_count(peak)}FLOP/s in a product, {human_count(wide)}B/s in a large sum. Dots near the line "
        f"leave nothing to gain by a faster kernel; what lies in the caches may be above its slope."
    )
    key = tag("div", _mark("kd", "attention"), _mark("k0", "other products"), class_="key")
    return [tag("h3", "Roofline"), tag("p", said, class_="soft small"), key, chart]


def _plane(points: Sequence[NodeTime], peak: float, wide: float) -> _Plane:
    work = [(n.flops or 0) / n.bytes for n in points]
    rates = [(n.flops or 0) / n.ms * 1e3 for n in points]
    ridge = peak / wide
    x = charts.LogScale(_below(min(*work, ridge) / 2), _above(max(*work, ridge) * 2))
    return _Plane(x, charts.LogScale(_below(min(rates) / 1.5), _above(max(peak, *rates) * 1.2)))


def _below(value: float) -> float:
    return 10.0 ** math.floor(math.log10(value))


def _above(value: float) -> float:
    return 10.0 ** math.ceil(math.log10(value))


def _axes(plane: _Plane) -> list[Markup]:
    found = []
    for tick in log_ticks(plane.x.low, plane.x.high):
        at = plane.across(tick)
        found.append(tag("line", x1=at, x2=at, y1=12, y2=_FLOOR, class_="grid"))
        found.append(tag("text", f"{tick:g}", x=at, y=_FLOOR + 14, text_anchor="middle"))
    for tick in log_ticks(plane.y.low, plane.y.high):
        at = plane.down(tick)
        found.append(tag("line", x1="8%", x2="98%", y1=at, y2=at, class_="grid"))
        found.append(tag("text", human_count(tick).replace(".0", ""), x="7.5%", y=at + 4, text_anchor="end"))
    found.append(tag("text", "FLOP for each byte read or written", x="98%", y=_FLOOR + 28, text_anchor="end"))
    found.append(tag("text", "FLOP/s", x="8.8%", y=24))
    return found


def _segment(plane: _Plane, start: tuple[float, float], end: tuple[float, float], kind: str) -> Markup:
    """A piece of the roof, cut off where it leaves the plane below."""
    (x1, y1), (x2, y2) = start, end
    if y1 < plane.y.low and y2 > y1:
        x1, y1 = x1 * plane.y.low / y1, plane.y.low
    return tag("line", x1=plane.across(x1), y1=plane.down(y1), x2=plane.across(x2), y2=plane.down(y2), class_=kind)


def _dot(plane: _Plane, node: NodeTime, largest: float) -> Markup:
    flops = node.flops or 0
    work, rate = flops / node.bytes, flops / node.ms * 1e3
    said = f"{node.name} ({node.op}): {milliseconds(node.ms)}, {human_count(rate)}FLOP/s at {work:.1f} FLOP/byte"
    return tag(
        "circle",
        tag("title", said),
        cx=plane.across(work),
        cy=plane.down(rate),
        r=round(2.5 + 5.5 * math.sqrt(node.ms / largest), 1),
        class_="dot at" if _is_attention(node) else "dot other",
    )


def _is_attention(node: NodeTime) -> bool:
    return "Attention" in node.op


def _memory(found: LatencyReport) -> list[Markup | None]:
    known: Mapping[str, int] = {c.name: c.peak_memory for c in found.contenders if c.peak_memory is not None}
    if not known:
        return []
    most = max(known.values()) or 1
    cells = [
        (name, charts.share_bar(held / most, title=name), f"{held / (1 << 20):.1f} MiB") for name, held in known.items()
    ]
    said = "By how much a process of its own grows at its peak to load the contender and run it twice."
    return [tag("h3", "Peak memory"), tag("p", said, class_="soft small"), charts.rows(cells, title="peak memory")]


def _sweep(points: Sequence[SweepPoint]) -> list[Markup | None]:
    if not points:
        return []
    names = list(dict.fromkeys(n for p in points for n in p.medians))
    heads = [tag("th", "Size"), *(tag("th", n, class_="num") for n in names)]
    body = [
        tag(
            "tr",
            tag("td", ", ".join(f"{n} {v}" for n, v in p.sizes.items()), _note(p.note)),
            *(
                tag("td", milliseconds(p.medians[n]) if n in p.medians else "–", class_="num", data_label=n)
                for n in names
            ),
        )
        for p in points
    ]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), class_="wide")
    return [tag("h3", "Other sizes"), table]


def _note(text: str | None) -> Markup:
    return tag("div", text, class_="soft small") if text else escape("")


def _mark(kind: str, text: str) -> Markup:
    return tag("span", tag("i", class_=kind), text)


def _per_cent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
