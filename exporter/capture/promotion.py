"""Casts that torch leaves implicit where a number stands before an integer tensor: ``1.0 - mask``."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.export import ExportedProgram

from .surgery import graphs

__all__ = ["cast_integers_after_numbers"]

_aten: Final = torch.ops.aten
#: Calls in which torch.onnx cannot promote types itself: it decomposes them into a call with a number first.
_NUMBER_FIRST: Final = frozenset({_aten.rsub.Scalar, _aten.rsub.Tensor})


def cast_integers_after_numbers(program: ExportedProgram) -> None:
    """Cast the integer operand of ``number - tensor`` to the type of the result, in place.

    torch promotes it while it computes; torch.onnx looks for an overload that takes a number first, and finds none.
    The value is the same: the operand is converted before the operation in either case.
    """
    for graph in graphs(program):
        for node in list(graph.nodes):
            if node.target in _NUMBER_FIRST:
                _cast_operands(graph, node)


def _cast_operands(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return
    for operand in dict.fromkeys(a for a in node.args if isinstance(a, torch.fx.Node)):
        value: Any = operand.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.is_floating_point():
            continue
        with graph.inserting_before(node):
            cast = graph.call_function(_aten._to_copy.default, (operand,), {"dtype": result.dtype})
        cast.meta = {**node.meta, "val": value.to(result.dtype)}
        node.replace_input_with(operand, cast)
