"""Drawing a :class:`~deployml.runtime.picture.Picture` as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..picture import Picture, PictureNode
from .layered import lay_out
from .markup import Markup, tag

__all__ = ["draw", "is_broad"]

_CHAR: Final = 7.1  # width of a character of the box text, pixels at 12 px
_SUB_CHAR: Final = 5.9
_PAD: Final = 16
_ROW: Final = 50
_BOX: Final = 30
_GAP: Final = 14.0
_LONGEST: Final = 30
_HALF_PAGE: Final = 640


def is_broad(picture: Picture) -> bool:
    """Whether a drawing would become too small to read in half the width of a page."""
    plan = lay_out([_width(n) for n in picture.nodes], picture.edges, gap=_GAP)
    return plan.right - plan.left > _HALF_PAGE


def draw(picture: Picture) -> Markup:
    """The picture as an SVG element that scales down with the page."""
    widths = [_width(n) for n in picture.nodes]
    plan = lay_out(widths, picture.edges, gap=_GAP)
    wide, high = plan.right - plan.left + 8, plan.layers * _ROW - (_ROW - _BOX) + 8

    def across(x: float) -> float:
        return round(x - plan.left + 4, 1)

    def top(layer: int) -> float:
        return layer * _ROW + 4

    edges = [_edge([(across(x), top(layer)) for x, layer in route]) for route in plan.routes]
    boxes = [
        _box(node, across(x), top(layer), width)
        for node, x, layer, width in zip(picture.nodes, plan.x, plan.layer, widths, strict=True)
    ]
    said = f"{picture.title}: {picture.operators} operators"
    return tag(
        "svg",
        tag("title", said),
        *edges,
        *boxes,
        class_="graph",
        viewBox=f"0 0 {wide:.0f} {high:.0f}",
        width=round(wide),
        height=round(high),
        role="img",
    )


def _width(node: PictureNode) -> float:
    return max(len(_cut(node.op)) * _CHAR, len(_cut(node.detail)) * _SUB_CHAR) + _PAD


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _edge(points: Sequence[tuple[float, float]]) -> Markup:
    """From the lower edge of the first box, through way points, to the upper edge of the last, in S curves."""
    (x, y), end = points[0], len(points) - 1
    y += _BOX
    path = f"M{x:g} {y:g}"
    for index, (next_x, next_top) in enumerate(points[1:], start=1):
        next_y = next_top if index == end else next_top + _BOX / 2
        bend = (next_y - y) / 2
        path += f"C{x:g} {y + bend:g} {next_x:g} {next_y - bend:g} {next_x:g} {next_y:g}"
        x, y = next_x, next_y
    return tag("path", d=path, class_="edge")


def _box(node: PictureNode, x: float, y: float, width: float) -> Markup:
    kind = "end" if node.border else "box"
    radius = _BOX / 2 if node.border else 6
    left = round(x - width / 2, 1)
    frame = tag("rect", x=left, y=y, width=round(width, 1), height=_BOX, rx=radius, class_=kind)
    middle = y + _BOX / 2
    lines = [tag("text", _cut(node.op), x=x, y=middle - 1 if node.detail else middle + 4)]
    if node.detail:
        lines.append(tag("text", _cut(node.detail), x=x, y=middle + 10.5, class_="sub"))
    return tag("g", frame, *lines, class_="core" if node.core else None)
