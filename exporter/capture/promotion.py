"""Casts that torch leaves implicit where integers meet floats: ``1.0 - mask``, ``einsum("i,j->ij", place, angle)``.

So does ``arange(0.0, size)``, whose end is an integer and whose result is not.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.export import ExportedProgram

from .surgery import graphs

__all__ = ["cast_promoted_integers"]

_aten: Final = torch.ops.aten
#: Calls in which torch.onnx does not promote types: it looks for an overload of the first two that takes a number
#: first, and finds none; the operands of the third go into one ONNX node as they are.
_UNPROMOTED: Final = frozenset({_aten.rsub.Scalar, _aten.rsub.Tensor, _aten.einsum.default})
_ARANGES: Final = frozenset({_aten.arange.default, _aten.arange.start, _aten.arange.start_step})


def cast_promoted_integers(program: ExportedProgram) -> None:
    """Cast integer operands of such a call to the floating-point type of its result, in place.

    torch promotes them while it computes. The value is the same: the operand is converted before the operation in
    either case. An ``arange`` is told the type of its result.
    """
    for graph in graphs(program):
        for node in list(graph.nodes):
            if node.target in _UNPROMOTED:
                _cast_operands(graph, node)
            elif node.target in _ARANGES:
                _say_type(node)


def _say_type(arange: torch.fx.Node) -> None:
    """torch.onnx takes the type of the end, a size, where none is said."""
    result = arange.meta.get("val")
    if isinstance(result, torch.Tensor) and result.is_floating_point() and arange.kwargs.get("dtype") is None:
        arange.kwargs = {**arange.kwargs, "dtype": result.dtype}


def _cast_operands(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    result = node.meta.get("val")
    if not isinstance(result, torch.Tensor) or not result.is_floating_point():
        return
    for operand in node.all_input_nodes:
        value: Any = operand.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.is_floating_point():
            continue
        with graph.inserting_before(node):
            cast = graph.call_function(_aten._to_copy.default, (operand,), {"dtype": result.dtype})
        cast.meta = {**node.meta, "val": value.to(result.dtype)}
        node.replace_input_with(operand, cast)
