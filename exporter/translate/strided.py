"""``as_strided`` reads memory, not values: give it its operand in the order it has in memory.

torch's ONNX translation flattens the operand by value order and gathers. That is right only for a contiguous
operand, and wrong without a word for a transposed one (Longformer's overlapping chunks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch.export import ExportedProgram

from ...runtime.errors import UnsupportedError
from ..capture.attention_op import size_hint, stride_order
from ..capture.surgery import graphs, source_line

__all__ = ["storage_ordered"]

_aten: Final = torch.ops.aten


def storage_ordered(program: ExportedProgram) -> ExportedProgram:
    """Make the operand of every ``as_strided`` contiguous in the order of its memory.

    Args:
        program: A captured program; returned as it is when it holds no such call.

    Raises:
        UnsupportedError: an operand is a part of a larger memory block, which a graph does not have.
    """
    if not any(True for _ in _calls(program)):
        return program
    # Without in-place operators a copy means the same as a view.
    program = program.run_decompositions({})
    for graph, node in list(_calls(program)):
        _rewrite(graph, node)
    return program


def _calls(program: ExportedProgram) -> Iterator[tuple[torch.fx.Graph, torch.fx.Node]]:
    for graph in graphs(program):
        for node in graph.nodes:
            if node.target is _aten.as_strided.default:
                yield graph, node


def _rewrite(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    operand = node.args[0]
    assert isinstance(operand, torch.fx.Node)
    value = operand.meta["val"]
    order = stride_order(value)
    if not _is_whole(value, order):
        raise UnsupportedError(
            "as_strided is called on a part of a larger tensor, whose memory a graph does not have.",
            hint="Call as_strided on the whole tensor, or use unfold.",
            where=source_line(node) or None,
        )
    if order == sorted(order):
        return
    with graph.inserting_before(node):
        turned = graph.call_function(_aten.permute.default, (operand, order))
        dense = graph.call_function(_aten.clone.default, (turned,), {"memory_format": torch.contiguous_format})
    turned.meta = {**node.meta, "val": value.permute(order)}
    dense.meta = {**node.meta, "val": value.permute(order).contiguous()}
    node.args = (dense, *node.args[1:])


def _is_whole(value: torch.Tensor, order: Sequence[int]) -> bool:
    """Whether a tensor fills its memory without gaps, starting at its beginning (at the traced sizes)."""
    expected = 1
    for axis in reversed(order):
        size = size_hint(value.shape[axis])
        if size != 1 and size_hint(value.stride(axis)) != expected:
            return False
        expected *= size
    return size_hint(value.storage_offset()) == 0
