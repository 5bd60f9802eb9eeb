"""Outputs that no value of an input reaches: learned points, a mean that is 0 by definition, masks of a shape."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx_ir as ir

__all__ = ["settled_outputs"]

#: Operators that read the shape of their operand and none of its values.
_SHAPES: Final = frozenset({"Shape", "Size"})


def settled_outputs(path: Path) -> frozenset[str]:
    """Names of the outputs of an ONNX file that depend on its inputs' shapes at most."""
    graph = ir.load(path).graph
    return frozenset(str(output.name) for output in graph.outputs if not _reached(output))


def _reached(output: ir.Value) -> bool:
    """Whether the value of a graph input, or a node with a body, stands somewhere above a value."""
    ahead, seen = [output], {output}
    while ahead:
        value = ahead.pop()
        node = value.producer()
        if node is None:
            if not value.is_initializer():
                return True
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return True
        if node.domain == "" and node.op_type in _SHAPES:
            continue
        above = [v for v in node.inputs if v is not None and v not in seen]
        seen.update(above)
        ahead += above
    return False
