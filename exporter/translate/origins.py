"""Replacing torch's node metadata (absolute paths, whole stacks) by the compact origin of each node."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ..source_map import Origin, frames

__all__ = ["origin_of", "replace_metadata"]


def replace_metadata(model: ir.Model) -> None:
    """Keep only the origin (module, class, source line) on every node, in place."""
    cache: dict[str, str] = {}
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        for node in graph.all_nodes():
            origin = origin_of(node.meta.get("node"), cache)
            node.metadata_props.clear()
            node.metadata_props.update(origin.metadata())
            node.doc_string = None
            node.meta.clear()
        for value in (*graph.inputs, *graph.initializers.values(), *graph.outputs):
            value.metadata_props.clear()
            value.meta.clear()
    model.metadata_props.clear()
    model.doc_string = None


def origin_of(node: Any, cache: dict[str, str]) -> Origin:
    """The origin of a torch.fx node, read from its module stack and Python stack.

    Args:
        node: The fx node, or None.
        cache: Python stack -> source line, shared between calls: many nodes have the same stack.
    """
    if node is None:
        return Origin()
    module, kind = _innermost(node.meta.get("nn_module_stack"))
    stack = node.meta.get("stack_trace") or ""
    if stack not in cache:
        cache[stack] = _source_line(stack)
    return Origin(module, kind, cache[stack])


def _innermost(stack: Any) -> tuple[str, str]:
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else kind.__qualname__
    return _without_call_count(path), name.rsplit(".", 1)[-1]


def _without_call_count(path: str) -> str:
    """torch writes "layer@1" for the second call of one module."""
    return path.split("@", 1)[0]


def _source_line(stack: str) -> str:
    found = frames(stack)
    own = [frame for frame in found if not frame.is_library]
    chosen = (own or found)[-1:]
    return chosen[0].where if chosen else ""
