"""Rows of a chart: a label, a strip of inline SVG in per cent of the width, and a value.

Strips are measured in per cent, so they follow the width of the page while their text stays readable: nothing is
scaled on a phone or on paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Markup, escape, tag
from .numbers import power

__all__ = ["LogScale", "bars", "dot_strip", "log_axis", "rows", "share_bar", "span_strip", "time_strip"]

_HEIGHT = 24
_MIDDLE = 12


@dataclass(frozen=True, slots=True)
class LogScale:
    """Maps values to per cent of the width, by logarithm; what lies outside sticks to the edge."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Per cent from the left."""
        if not value > self.low:
            return 0.0
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return round(100 * min(1.0, share), 2)


def rows(
    cells: Sequence[tuple[object, Markup, object]], *, title: str, head: tuple[str, Markup, str] | None = None
) -> Markup:
    """A grid of (label, strip, value). ``head`` is a first row of its own kind."""
    found = []
    if head is not None:
        found += [
            tag("div", head[0], class_="lab head"),
            tag("div", head[1], class_="plot"),
            tag("div", head[2], class_="val head low"),
        ]
    for label, strip, value in cells:
        found += [
            tag("div", escape(label), class_="lab"),
            tag("div", strip, class_="plot"),
            tag("div", escape(value), class_="val"),
        ]
    return tag("div", *found, class_="rows", role="group", aria_label=title)


def log_axis(scale: LogScale, ticks: Sequence[float], *, labels: Sequence[str] | None = None) -> Markup:
    """The axis above the strips."""
    texts = labels or [power(t) for t in ticks]
    marks = [
        tag("text", text, x=_per_cent(scale.at(t)), y=17, text_anchor=_anchor(scale.at(t)))
        for t, text in zip(ticks, texts, strict=True)
    ]
    return _strip(*marks)


def dot_strip(scale: LogScale, ticks: Sequence[float], value: float, limit: float, *, bad: bool, title: str) -> Markup:
    """A dot at ``value``, a mark at ``limit`` and a thin line between them: the distance that is left."""
    at, end = scale.at(value), scale.at(limit)
    tone = " bad" if bad else ""
    return _strip(
        tag("title", title),
        *_grid(scale, ticks),
        _line(min(at, end), max(at, end), f"lead{tone}"),
        tag("line", x1=_per_cent(end), x2=_per_cent(end), y1=4, y2=20, class_="granted"),
        tag("circle", cx=_per_cent(at), cy=_MIDDLE, r=4.5, class_=f"dot{tone}"),
    )


def span_strip(scale: LogScale, ticks: Sequence[float], low: float, value: float, high: float, *, title: str) -> Markup:
    """An interval with its middle, and a line at 1."""
    one = _per_cent(scale.at(1.0))
    return _strip(
        tag("title", title),
        *_grid(scale, ticks),
        tag("line", x1=one, x2=one, y1=0, y2=_HEIGHT, class_="zero"),
        _line(scale.at(low), scale.at(high), "span"),
        *(
            tag("line", x1=_per_cent(scale.at(v)), x2=_per_cent(scale.at(v)), y1=7, y2=17, class_="span")
            for v in (low, high)
        ),
        tag("circle", cx=_per_cent(scale.at(value)), cy=_MIDDLE, r=4.5, class_="dot"),
    )


def time_strip(longest: float, middle: float, p90: float, p99: float, *, base: bool, title: str) -> Markup:
    """A bar to the median, a line on to the 99th percentile with a mark at the 90th."""

    def at(value: float) -> float:
        return round(100 * min(1.0, value / longest), 2) if longest > 0 else 0.0

    return _strip(
        tag("title", title),
        tag("rect", x=0, y=6, width=_per_cent(at(middle)), height=12, rx=2, class_="b1" if base else "b0"),
        _line(at(middle), at(p99), "granted"),
        *(tag("line", x1=_per_cent(at(v)), x2=_per_cent(at(v)), y1=8, y2=16, class_="granted") for v in (p90, p99)),
    )


def bars(most: int, before: int, after: int) -> Markup:
    """Two thin bars, before above after."""

    def wide(value: int) -> str:
        return _per_cent(round(100 * value / most, 2) if most else 0.0)

    return _strip(
        tag("title", f"{before} before, {after} after"),
        tag("rect", x=0, y=5, width=wide(before), height=6, rx=1.5, class_="b0"),
        tag("rect", x=0, y=13, width=wide(after), height=6, rx=1.5, class_="b1"),
    )


def share_bar(share: float, *, title: str) -> Markup:
    """A bar as long as a share of the whole."""
    width = _per_cent(round(100 * min(1.0, max(0.0, share)), 2))
    return _strip(
        tag("title", title),
        tag("rect", x=0, y=6, width="100%", height=12, rx=2, class_="rest"),
        tag("rect", x=0, y=6, width=width, height=12, rx=2, class_="b1"),
    )


def _strip(*content: Markup) -> Markup:
    return tag("svg", *content, class_="chart", height=_HEIGHT, role="img")


def _grid(scale: LogScale, ticks: Sequence[float]) -> list[Markup]:
    places = [_per_cent(scale.at(t)) for t in ticks]
    return [tag("line", x1=x, x2=x, y1=0, y2=_HEIGHT, class_="grid") for x in places]


def _line(start: float, end: float, kind: str) -> Markup:
    return tag("line", x1=_per_cent(start), x2=_per_cent(end), y1=_MIDDLE, y2=_MIDDLE, class_=kind)


def _per_cent(value: float) -> str:
    return f"{value:g}%"


def _anchor(per_cent: float) -> str:
    return "start" if per_cent < 4 else "end" if per_cent > 96 else "middle"
