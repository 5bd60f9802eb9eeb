"""``scores[mask] = number``: every element under the mask becomes the number, which is ``masked_fill``.

torch's ONNX translation lists the positions under the mask and scatters to them. No pass sees through that, and
a mask behind whole axes (``scores[:, :, mask] = number``) it does not translate at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from ..capture.surgery import graphs

__all__ = ["filled_under_masks"]

_aten: Final = torch.ops.aten
_WRITES: Final = (
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._unsafe_index_put.default,
    _aten._index_put_impl_.default,
)


def filled_under_masks(program: ExportedProgram) -> ExportedProgram:
    """Fill under one boolean mask with one number by ``masked_fill``.

    Args:
        program: A captured program; returned as it is when it holds no such write.
    """
    if not any(True for _ in _fills(program)):
        return program
    # Without in-place operators the result of a write is a tensor of its own.
    program = program.run_decompositions({})
    for graph, node, mask, skipped in list(_fills(program)):
        _rewrite(graph, node, mask, skipped)
    return program


def _fills(program: ExportedProgram) -> Iterator[tuple[torch.fx.Graph, torch.fx.Node, torch.fx.Node, int]]:
    """Every such write, its mask, and how many axes stand before those of the mask."""
    for graph in graphs(program):
        for node in graph.nodes:
            if node.target not in _WRITES or _adds(node) or not _is_number(node.args[2]):
                continue
            indices: Any = node.args[1]
            masks = [(at, index) for at, index in enumerate(indices) if index is not None]
            if len(masks) == 1 and masks[0][1].meta["val"].dtype == torch.bool:
                yield graph, node, masks[0][1], masks[0][0]


def _adds(node: torch.fx.Node) -> bool:
    return bool(node.args[3]) if len(node.args) > 3 else bool(node.kwargs.get("accumulate", False))


def _is_number(value: Any) -> bool:
    return isinstance(value, torch.fx.Node) and all(size == 1 for size in value.meta["val"].shape)


def _rewrite(graph: torch.fx.Graph, node: torch.fx.Node, mask: torch.fx.Node, skipped: int) -> None:
    written, number = node.args[0], node.args[2]
    assert isinstance(written, torch.fx.Node)
    assert isinstance(number, torch.fx.Node)
    rank = written.meta["val"].dim()
    with graph.inserting_before(node):
        wide = mask
        for _ in range(rank - skipped - mask.meta["val"].dim()):
            wide = _call(graph, node, _aten.unsqueeze.default, wide, -1)
        if number.meta["val"].dim() > 0:
            number = _call(graph, node, _aten.view.default, number, [])
        filled = _call(graph, node, _aten.masked_fill.Tensor, written, wide, number)
    node.replace_all_uses_with(filled)
    graph.erase_node(node)


def _call(graph: torch.fx.Graph, like: torch.fx.Node, target: Any, *args: Any) -> torch.fx.Node:
    made = graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in args]
    made.meta = {**like.meta, "val": target(*values)}
    return made
