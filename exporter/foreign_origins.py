"""Where the nodes of somebody else's ONNX file come from: torch's exporter leaves a Python stack on each of them."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from .source_map import MODULE_KEY, SOURCE_KEY, Origin, frames

__all__ = ["adopt_origins"]

_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_CLASSES: Final = "pkg.torch.onnx.class_hierarchy"
_STACK: Final = "pkg.torch.onnx.stack_trace"


def adopt_origins(model: ir.Model) -> int:
    """Read torch's node metadata into ours and drop it, in place: it holds whole stacks with absolute paths.

    Returns:
        How many nodes have an origin afterwards.
    """
    lines: dict[str, str] = {}
    known = 0
    for node in model.graph.all_nodes():
        props = node.metadata_props
        if _SCOPES in props and MODULE_KEY not in props and SOURCE_KEY not in props:
            stack = props.get(_STACK, "")
            if stack not in lines:
                lines[stack] = _user_line(stack)
            props.update(_origin(props[_SCOPES], props.get(_CLASSES, ""), lines[stack]).metadata())
        for key in [k for k in props if k.startswith("pkg.") or k == "namespace"]:
            del props[key]
        known += MODULE_KEY in props or SOURCE_KEY in props
    for value in _outer_values(model):
        value.metadata_props.clear()
    return known


def _origin(scopes: str, classes: str, source: str) -> Origin:
    """The last scope and class are those of the operator; the ones before are modules."""
    path, kinds = _texts(scopes)[:-1], _texts(classes)[:-1]
    return Origin(path[-1] if path else "", kinds[-1].rsplit(".", 1)[-1] if kinds else "", source)


def _texts(written: str) -> Sequence[str]:
    try:
        found = ast.literal_eval(written)
    except (ValueError, SyntaxError):
        return ()
    return [str(item) for item in found] if isinstance(found, list) else ()


def _user_line(stack: str) -> str:
    found = [frame for frame in frames(stack) if not frame.file.startswith("<")]  # generated code lies in no file
    own = [frame for frame in found if not frame.is_library]
    return (own or found)[-1].where if found else ""


def _outer_values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    return [*graph.inputs, *graph.outputs, *graph.initializers.values()]
