"""Forward propagation of symbolic shapes and of the small integer vectors that shapes are computed with."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ..graph import constant, op_name
from ..look import cast_target
from .shape_rules import SHAPES, Dims, is_unknown, parts_of_split
from .vector_rules import VECTORS

__all__ = ["Propagation"]

#: A shape or integer vector longer than this is not followed.
LONGEST: Final = 16


class Propagation:
    """One forward pass over a graph in execution order.

    Args:
        graph: Its values' unknown shapes are filled in.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._vectors: dict[int, Dims] = {}

    def run(self) -> int:
        """Visit every node once. Returns how many values are known better than before."""
        better = 0
        for value in self._graph.inputs:
            self.name_unknown(value)
        for node in self._graph:
            better += self._visit(node)
            for output in node.outputs:
                if not output.is_graph_output():
                    self.name_unknown(output)
        return better

    def _visit(self, node: ir.Node) -> int:
        self._follow_vector(node)
        if op_name(node) == "Split":
            return self._parts(node)
        rule = SHAPES.get(op_name(node))
        if rule is None or not node.inputs or not node.outputs:
            return 0
        try:
            shape = rule(self, node)
        except (IndexError, TypeError, AttributeError, ValueError):
            return 0  # an input of unknown or unfitting rank: nothing can be said
        return _take(node.outputs[0], shape) + self._types(node)

    def _parts(self, node: ir.Node) -> int:
        try:
            shapes = parts_of_split(self, node)
        except (IndexError, TypeError, ValueError):
            return 0
        for output in node.outputs:
            output.dtype = node.inputs[0].dtype if output.dtype is None and node.inputs[0] is not None else output.dtype
        return sum(_take(output, shape) for output, shape in zip(node.outputs, shapes, strict=True))

    def name_unknown(self, value: ir.Value) -> None:
        """Give each unknown dimension of a value a symbol of its own, so that later ones can be equal to it."""
        if value.shape is None or not any(is_unknown(d) for d in value.shape):
            return
        named = [f"{_word(value.name)}_d{axis}" if is_unknown(d) else d for axis, d in enumerate(value.shape)]
        value.shape = ir.Shape(named)

    def _types(self, node: ir.Node) -> int:
        first = node.inputs[0]
        output = node.outputs[0]
        if output.dtype is not None or first is None:
            return 0
        if op_name(node) == "Cast":
            output.dtype = cast_target(node)
        elif op_name(node) == "Shape":
            output.dtype = ir.DataType.INT64
        elif op_name(node) == "Where":
            output.dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
        elif op_name(node) in _SAME_TYPE:
            output.dtype = first.dtype
        return int(output.dtype is not None)

    # Integer vectors: what a Reshape or Expand is told.

    def vector(self, value: ir.Value | None) -> Dims | None:
        """The elements of an integer vector: numbers, and symbols where they come from shapes."""
        if value is None:
            return None
        if id(value) in self._vectors:
            return self._vectors[id(value)]
        array = constant(value, limit=LONGEST)
        if array is None or array.dtype.kind != "i" or array.ndim > 1:
            return None
        return [int(x) for x in array.reshape(-1)]

    def _follow_vector(self, node: ir.Node) -> None:
        rule = VECTORS.get(op_name(node))
        if rule is None or len(node.outputs) != 1:
            return
        try:
            found = rule(self, node)
        except (IndexError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            return
        if found is not None and len(found) <= LONGEST:
            self._vectors[id(node.outputs[0])] = found


def _take(value: ir.Value, shape: Dims | None) -> int:
    if shape is None:
        return 0
    if value.shape is None:
        value.shape = ir.Shape(shape)
        return 1
    if len(value.shape) != len(shape) or not any(is_unknown(d) for d in value.shape):
        return 0
    better = [b if is_unknown(a) else a for a, b in zip(value.shape, shape, strict=True)]
    changed = any(is_unknown(a) and not is_unknown(b) for a, b in zip(value.shape, shape, strict=True))
    if changed:
        value.shape = ir.Shape(better)
    return int(changed)


_SAME_TYPE: Final = frozenset(
    op
    for op in SHAPES
    if op not in ("Shape", "IsNaN", "Not", "And", "Or", "Xor", "Equal", "Where", "Cast", "ConstantOfShape")
) - frozenset(
    [
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "MatMulInteger",
        "DynamicQuantizeLinear",
        "QuantizeLinear",
        "DequantizeLinear",
        "com.microsoft::MatMulIntegerToFloat",
    ]
)


def _word(name: str | None) -> str:
    """A name as one word: the hyphen of "no-op.3_out" would be read as a minus in a dimension."""
    if name is None or name.isidentifier():
        return str(name)
    return "_" + "".join(c if c.isalnum() or c == "_" else f"_{ord(c):x}_" for c in name)
