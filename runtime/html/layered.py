"""A layered layout: producers above consumers, few crossings, straight runs. Deterministic.

Sugiyama's scheme in its simplest form: layers by longest path, way points on edges that span layers, order by
mean of neighbours, then positions by least squares under a minimal distance (pool adjacent violators).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Layout", "lay_out"]

_SWEEPS = 10


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are.

    Attributes:
        x: Centre of each node, in the unit of the widths that were given.
        layer: Layer of each node, from 0.
        routes: For each edge the points it passes, as (x, layer), ends included.
        left, right: Extent of the nodes.
        layers: How many layers there are.
    """

    x: tuple[float, ...]
    layer: tuple[int, ...]
    routes: tuple[tuple[tuple[float, int], ...], ...]
    left: float
    right: float
    layers: int


def lay_out(widths: Sequence[float], edges: Sequence[tuple[int, int]], *, gap: float) -> Layout:
    """Place nodes of the given widths so that every edge points down.

    Args:
        widths: Width of each node.
        edges: Pairs (from, to); the graph has no cycle.
        gap: Least distance between two nodes of a layer.
    """
    layer = _layers(len(widths), edges)
    chains, sizes, depth = _with_way_points(widths, edges, layer)
    rows: list[list[int]] = [[] for _ in range(max(depth, default=-1) + 1)]
    for node, level in enumerate(depth):
        rows[level].append(node)
    up: list[list[int]] = [[] for _ in depth]
    down: list[list[int]] = [[] for _ in depth]
    for chain in chains:
        for a, b in itertools.pairwise(chain):
            down[a].append(b)
            up[b].append(a)
    _order(rows, up, down)
    x = _positions(rows, up, down, sizes, gap)
    count = len(widths)
    return Layout(
        x=tuple(x[:count]),
        layer=tuple(depth[:count]),
        routes=tuple(tuple((x[n], depth[n]) for n in chain) for chain in chains),
        left=min((x[n] - sizes[n] / 2 for n in range(len(x))), default=0.0),
        right=max((x[n] + sizes[n] / 2 for n in range(len(x))), default=0.0),
        layers=len(rows),
    )


def _layers(count: int, edges: Sequence[tuple[int, int]]) -> list[int]:
    """Longest path from the top; nodes without producers then sink to just above their first consumer."""
    layer = [0] * count
    for _ in range(count):
        moved = False
        for a, b in edges:
            if layer[b] <= layer[a]:
                layer[b], moved = layer[a] + 1, True
        if not moved:
            break
    fed = {b for _, b in edges}
    for node in range(count):
        below = [layer[b] for a, b in edges if a == node]
        if node not in fed and below:
            layer[node] = min(below) - 1
    return layer


def _with_way_points(
    widths: Sequence[float], edges: Sequence[tuple[int, int]], layer: Sequence[int]
) -> tuple[list[list[int]], list[float], list[int]]:
    """Chains of node numbers an edge passes; way points are numbered after the nodes."""
    sizes, depth, chains = list(widths), list(layer), []
    for a, b in edges:
        chain = [a]
        for level in range(layer[a] + 1, layer[b]):
            chain.append(len(sizes))
            sizes.append(0.0)
            depth.append(level)
        chains.append([*chain, b])
    return chains, sizes, depth


def _order(rows: list[list[int]], up: Sequence[Sequence[int]], down: Sequence[Sequence[int]]) -> None:
    """Sort each row by the mean place of its neighbours, top down and bottom up in turn."""
    for sweep in range(_SWEEPS):
        near = up if sweep % 2 == 0 else down
        for row in rows if sweep % 2 == 0 else reversed(rows):
            place = {n: i / max(1, len(r) - 1) for r in rows for i, n in enumerate(r)}
            row.sort(
                key=lambda n, place=place, near=near: (
                    _mean([place[m] for m in near[n]], place[n]),
                    place[n],
                    n,
                )
            )


def _positions(
    rows: list[list[int]],
    up: Sequence[Sequence[int]],
    down: Sequence[Sequence[int]],
    sizes: Sequence[float],
    gap: float,
) -> list[float]:
    x = [0.0] * len(sizes)
    for row in rows:
        for n, place in zip(row, _spread([0.0] * len(row), [sizes[n] for n in row], gap), strict=True):
            x[n] = place
    for sweep in range(4 * _SWEEPS):
        near = (up, down)[sweep % 2]
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wish = [_mean([x[m] for m in near[n]], x[n]) for n in row]
            for n, place in zip(row, _spread(wish, [sizes[n] for n in row], gap), strict=True):
                x[n] = place
    return x


def _spread(wish: Sequence[float], sizes: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wishes (least squares) that keep order and distance."""
    offsets, reach = [], 0.0
    for i, size in enumerate(sizes):
        reach += 0.0 if i == 0 else (sizes[i - 1] + size) / 2 + gap
        offsets.append(reach)
    blocks: list[tuple[float, int]] = []  # mean of what its members want, how many they are
    for want, offset in zip(wish, offsets, strict=True):
        mean, members = want - offset, 1
        while blocks and blocks[-1][0] > mean:
            other, many = blocks.pop()
            mean = (mean * members + other * many) / (members + many)
            members += many
        blocks.append((mean, members))
    means = [mean for mean, members in blocks for _ in range(members)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default
