"""Padding that is cut off again: ``x[:, :-padding]`` under ``if padding > 0``.

Models that pad a sequence to whole windows leave the cut out when there is nothing to cut. A trace holds the cut
alone, and ``x[:, :-0]`` is empty. Written as ``x[:, : size - padding]`` the cut means the same wherever the branch
was taken, and cuts nothing where it was not. Whether that is what the model does there is asked of the model itself,
by the check of its dynamic axes.
"""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from .surgery import graphs

__all__ = ["count_trims_from_the_front"]

_SLICE: Final = torch.ops.aten.slice.Tensor


def count_trims_from_the_front(program: ExportedProgram) -> None:
    """Let slices that end at minus a computed size end at the axis' size less that, in place."""
    for graph in graphs(program):
        for node in list(graph.nodes):
            if node.target is _SLICE and len(node.args) > 3 and _negated(node.args[3]) is not None:
                _count_from_the_front(graph, node)


def _negated(end: Any) -> torch.fx.Node | None:
    """n, where a slice ends at -n and n varies."""
    if not isinstance(end, torch.fx.Node) or end.target is not operator.neg:
        return None
    size = end.args[0]
    return size if isinstance(size, torch.fx.Node) and isinstance(size.meta.get("val"), torch.SymInt) else None


def _count_from_the_front(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    tensor, axis, start, end, *step = node.args
    cut = _negated(end)
    value = tensor.meta.get("val") if isinstance(tensor, torch.fx.Node) else None
    if cut is None or value is None or not isinstance(axis, int):
        return
    with graph.inserting_before(node):
        size = graph.call_function(torch.ops.aten.sym_size.int, (tensor, axis))
        size.meta = {**node.meta, "val": value.shape[axis]}
        left = graph.call_function(operator.sub, (size, cut))
        left.meta = {**node.meta, "val": value.shape[axis] - cut.meta["val"]}
    node.args = (tensor, axis, start, left, *step)
