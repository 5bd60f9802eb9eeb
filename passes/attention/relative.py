"""A bias that is looked up by relative position: read as a short table instead of a (S, T) tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from ..evaluate import Evaluator
from ..graph import attribute
from ..masks.evaluate import evaluate
from ..masks.frame import HEAD, KEY, QUERY, place
from ..masks.poly import Axis, Elem, Poly, parse_size
from ..masks.tensor import Memo

__all__ = ["RelativeTable", "relative_table"]

#: Distances for which the bucket function is evaluated, to either side: longer than any sequence with such a bias.
_EVALUATED: Final = 1 << 17
#: Largest reach of a table; a function that goes on changing is left as it is.
_MAX_REACH: Final = 2048
#: Operators that work element by element, so that what they make of a distance depends on the distance alone.
_ELEMENTWISE: Final = frozenset(
    {"Abs", "Add", "And", "Cast", "Ceil", "Clip", "Div", "Equal", "Expand", "Floor", "Greater", "GreaterOrEqual"}
    | {"Identity", "Less", "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Round"}
    | {"Sign", "Sqrt", "Sub", "Where"}
)


@dataclass(frozen=True, slots=True)
class RelativeTable:
    """``bias[b, n, i, j] = weight[buckets[reach + clip(j - i, -reach, reach)], n]``.

    Attributes:
        weight: (buckets, heads or 1).
        buckets: Row of ``weight`` for each distance from -reach to reach.
    """

    weight: ir.Value
    buckets: tuple[int, ...]


def relative_table(bias: ir.Value, query: ir.Value, key: ir.Value) -> RelativeTable | None:
    """Read a bias over (B, N, S, T) as a table of relative positions, or None where it is not proven to be one.

    The layout comes from the index algebra of masks; the bucket of each distance is computed by running the nodes
    between ``j - i`` and the look-up on every distance up to 2 ** 17.
    """
    assert query.shape is not None and key.shape is not None
    memo = Memo()
    tensor = evaluate(bias, memo)
    frame = None if tensor is None else place(tensor, memo, parse_size(query.shape[2]), parse_size(key.shape[2]))
    if frame is None or frame.loose or not isinstance(frame.expr, Poly) or frame.expr.single is None:
        return None
    atom, factor, rest = frame.expr.single
    if not isinstance(atom, Elem) or factor != 1 or rest != 0:
        return None
    gather = atom.value.producer()
    rows, columns, heads = (Poly.atom(Axis(role)) for role in (QUERY, KEY, HEAD))
    if gather is None or gather.op_type != "Gather" or attribute(gather, "axis", 0) != 0:
        return None
    weight, index = gather.inputs
    if weight is None or index is None or atom.indices != (rows, columns, heads):
        return None
    buckets = _buckets(index, memo)
    return None if buckets is None else RelativeTable(weight, buckets)


def _buckets(index: ir.Value, memo: Memo) -> tuple[int, ...] | None:
    """The index as a function of the distance, as far as it changes."""
    found = _chain(index, memo)
    if found is None:
        return None
    nodes, sources = found
    distances = np.arange(-_EVALUATED, _EVALUATED + 1, dtype=np.int64)
    try:
        values = Evaluator().prepare(_as_model(index, nodes, sources))({"distance": distances})[0]
    except Exception:  # an operator without a kernel for these types
        return None
    if values.shape != distances.shape:
        return None
    first, last = int(np.argmax(values != values[0])), int(np.argmax(values[::-1] != values[-1]))
    if values[0] == values[-1] and not (values != values[0]).any():
        return (int(values[0]),)
    reach = max(_EVALUATED - first + 1, _EVALUATED - last + 1)
    if reach > _MAX_REACH:
        return None
    return tuple(int(v) for v in values[_EVALUATED - reach : _EVALUATED + reach + 1])


def _chain(index: ir.Value, memo: Memo) -> tuple[Sequence[ir.Node], dict[ir.Value, int]] | None:
    """The elementwise nodes above an index, in order, and the values above them that are j - i (1) or i - j (-1)."""
    distance = Poly.atom(Axis(1)) - Poly.atom(Axis(0))
    nodes: list[ir.Node] = []
    sources: dict[ir.Value, int] = {}
    seen: set[ir.Value] = set()

    def visit(value: ir.Value) -> bool:
        if value in seen:
            return True
        seen.add(value)
        if value.const_value is not None and value.producer() is None:
            return value.const_value.size == 1
        tensor = evaluate(value, memo)
        if tensor is not None and tensor.rank == 2 and tensor.expr in (distance, -distance) and tensor.kind == "int":
            sources[value] = 1 if tensor.expr == distance else -1
            return True
        node = value.producer()
        if node is None or node.domain or node.op_type not in _ELEMENTWISE or len(nodes) > 64:
            return False
        if not all(visit(given) for given in _operands(node)):
            return False
        nodes.append(node)
        return True

    return (nodes, sources) if visit(index) and sources else None


def _operands(node: ir.Node) -> list[ir.Value]:
    """What a node computes with. An Expand only repeats: the rank of the index says that it adds no axis."""
    given = [value for value in node.inputs if value is not None]
    return given[:1] if node.op_type == "Expand" else given


def _as_model(index: ir.Value, nodes: Sequence[ir.Node], sources: dict[ir.Value, int]) -> ir.Model:
    """The nodes over one axis of distances instead of a grid."""
    distance = ir.Value(name="distance", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    made: dict[ir.Value, ir.Value] = {}
    built: list[ir.Node] = []
    for source, sign in sources.items():
        step = ir.node("Neg" if sign < 0 else "Identity", [distance])
        cast = ir.node("Cast", [step.outputs[0]], {"to": int(source.dtype or ir.DataType.INT64)})
        built += [step, cast]
        made[source] = cast.outputs[0]
    for node in nodes:
        for given in _operands(node):
            if given not in made:
                constant = ir.node("Constant", [], {"value": given.const_value})
                built.append(constant)
                made[given] = constant.outputs[0]
        if node.op_type == "Expand":
            made[node.outputs[0]] = made[_operands(node)[0]]
            continue
        copy = ir.Node(
            "",
            node.op_type,
            [None if v is None else made[v] for v in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
        )
        built.append(copy)
        made[node.outputs[0]] = copy.outputs[0]
    result = ir.node("Cast", [made[index]], {"to": int(ir.DataType.INT64)})
    result.outputs[0].name, result.outputs[0].type = "bucket", ir.TensorType(ir.DataType.INT64)
    graph = ir.Graph([distance], result.outputs, nodes=[*built, result], opset_imports={"": 21}, name="buckets")
    return ir.Model(graph, ir_version=10)
