"""Layout operators on complex tensors, written over (..., 2) real ones: torch.onnx translates few of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from .surgery import graphs

__all__ = ["open_complex_layout"]

_aten: Final = torch.ops.aten


def open_complex_layout(program: ExportedProgram) -> None:
    """Move ``unsqueeze``, ``select`` and ``expand`` of complex tensors to their real views, in place.

    Rotary embeddings written with complex numbers (``freqs_cis[:, :, None]``) need them. A complex tensor is a real
    one with a last axis of 2, so only that axis has to be kept out of the way.
    """
    for graph in graphs(program):
        for node in list(graph.nodes):
            arguments = _REAL.get(node.target)
            source = node.args[0] if node.args else None
            if arguments is None or not isinstance(source, torch.fx.Node) or not _is_complex(source):
                continue
            _through_real(graph, node, source, arguments(node, source.meta["val"].dim()))


def _is_complex(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _through_real(
    graph: torch.fx.Graph, node: torch.fx.Node, source: torch.fx.Node, arguments: tuple[Any, ...]
) -> None:
    result = node.meta["val"]
    with graph.inserting_before(node):
        real = graph.call_function(_aten.view_as_real.default, (source,))
        moved = graph.call_function(node.target, (real, *arguments))  # type: ignore[arg-type]
        whole = graph.call_function(_aten.view_as_complex.default, (moved,))
    real.meta = {**node.meta, "val": torch.view_as_real(source.meta["val"])}
    moved.meta = {**node.meta, "val": torch.view_as_real(result)}
    whole.meta = dict(node.meta)
    node.replace_all_uses_with(whole)
    graph.erase_node(node)


def _unsqueeze(node: torch.fx.Node, rank: int) -> tuple[Any, ...]:
    return (_from_front(node.args[1], rank + 1),)


def _select(node: torch.fx.Node, rank: int) -> tuple[Any, ...]:
    return (_from_front(node.args[1], rank), node.args[2])


def _expand(node: torch.fx.Node, rank: int) -> tuple[Any, ...]:
    return ([*node.args[1], 2],)  # type: ignore[misc]


def _from_front(axis: Any, rank: int) -> int:
    return int(axis) % rank


_REAL: Final[dict[Any, Callable[[torch.fx.Node, int], tuple[Any, ...]]]] = {
    _aten.unsqueeze.default: _unsqueeze,
    _aten.select.int: _select,
    _aten.expand.default: _expand,
}
