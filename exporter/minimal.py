"""The smallest model that shows where two graphs part: one piece of each, side by side, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..custom_ops import register
from ..passes.evaluate import Evaluator
from ..runtime.compare import relative_error

__all__ = ["Parting", "in_memory", "part"]


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two graphs part.

    Attributes:
        output: The first value with the same name in both graphs that differs.
        node: The node of the second graph that makes it.
        error: How much it differs, relative to its largest value; None where the shapes differ.
        model: Computes "before" and "after" from the values both graphs agree on.
        feeds: Those values.
    """

    output: str
    node: ir.Node
    error: float | None
    model: ir.Model
    feeds: Mapping[str, np.ndarray]


def part(before: ir.Model, after: ir.Model, feeds: Mapping[str, np.ndarray], tolerance: float) -> Parting | None:
    """Run both graphs, onnxruntime's own rewriting off, and cut out the piece where they part.

    Args:
        before: The graph that is right.
        after: The graph that should compute the same; values that are the same have the same name.
        feeds: Inputs on which they differ.
        tolerance: Differences up to this, relative to a value's largest element, do not count.

    Returns:
        None where no value that both graphs name differs, as when only onnxruntime's rewriting shows it.
    """
    before, after = in_memory(before), in_memory(after)
    shared = sorted(_made(before) & _made(after), key=_order(after))
    ours, theirs = _values(after, shared, feeds), _values(before, shared, feeds)
    agreed: dict[str, np.ndarray] = dict(feeds)
    for name in shared:
        if name not in ours or name not in theirs:
            continue
        error = relative_error(ours[name], theirs[name])
        if error is not None and error <= tolerance:
            agreed[name] = theirs[name]
            continue
        node = _producers(after)[name]
        results = {"before": theirs[name], "after": ours[name]}
        model, inputs = _side_by_side(before, after, name, agreed, results)
        return Parting(name, node, error, model, {n: agreed[n] for n in inputs})
    return None


def in_memory(model: ir.Model) -> ir.Model:
    """A copy whose weights lie in memory, also those that its source keeps in a file of their own."""
    return ir.external_data.load_to_model(model.clone())


def _made(model: ir.Model) -> set[str]:
    return set(_producers(model))


def _producers(model: ir.Model) -> dict[str, ir.Node]:
    return {str(o.name): node for node in model.graph for o in node.outputs if o.name}


def _order(model: ir.Model) -> Callable[[str], int]:
    places = {name: place for place, name in enumerate(_producers(model))}
    return places.__getitem__


def _values(model: ir.Model, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a graph computes under these names; values that no tensor holds are left out."""
    copy = model.clone()
    producers = _producers(copy)
    by_name = {str(o.name): o for node in producers.values() for o in node.outputs}
    wanted = [n for n in names if by_name[n].type is None or isinstance(by_name[n].type, ir.TensorType)]
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(by_name[n] for n in wanted)
    return dict(zip(wanted, Evaluator(register).prepare(copy)(feeds), strict=True))


def _side_by_side(
    before: ir.Model,
    after: ir.Model,
    output: str,
    agreed: Mapping[str, np.ndarray],
    results: Mapping[str, np.ndarray],
) -> tuple[ir.Model, list[str]]:
    """One model of two pieces, named like ``results``. The inputs are those of ``agreed`` that a piece needs."""
    pieces = {"before": _piece(before, output, agreed), "after": _piece(after, output, agreed)}
    inputs: dict[str, ir.Value] = {}
    nodes, outputs, initializers = [], [], []
    for label, piece in pieces.items():
        for value in piece.inputs:
            name = str(value.name)
            inputs.setdefault(name, _input(name, agreed[name]))
            ir.convenience.replace_all_uses_with(value, inputs[name], replace_graph_outputs=True)
        made = list(piece)
        found = piece.outputs[0]
        piece.outputs.clear()
        initializers += _renamed(label, list(piece.initializers.values()))
        piece.initializers.clear()
        piece.remove(made)
        for node in made:
            node.name = f"{label}/{node.name}"
            _renamed(label, node.outputs)
        found.name, found.type = label, ir.TensorType(ir.DataType.from_numpy(results[label].dtype))
        found.shape = ir.Shape(results[label].shape)
        nodes += made
        outputs.append(found)
    imports = {**before.graph.opset_imports, **after.graph.opset_imports}
    graph = ir.Graph(
        [inputs[n] for n in sorted(inputs)],
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports=imports,
        name="parting",
    )
    functions = {f.identifier(): f for m in (before, after) for f in m.clone().functions.values()}
    return ir.Model(graph, ir_version=after.ir_version, functions=tuple(functions.values())), sorted(inputs)


def _renamed(label: str, values: Sequence[ir.Value]) -> Sequence[ir.Value]:
    for value in values:
        if value.name:
            value.name = f"{label}/{value.name}"
            if value.const_value is not None:
                value.const_value.name = value.name
    return values


def _input(name: str, array: np.ndarray) -> ir.Value:
    dtype = ir.DataType.from_numpy(array.dtype)
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(array.shape))


def _piece(model: ir.Model, output: str, agreed: Mapping[str, np.ndarray]) -> ir.Graph:
    """A copy of the part of a graph that computes ``output`` from agreed values."""
    producers = _producers(model)
    needed, seen, stack = set[str](), {output}, [output]
    while stack:
        node = producers.get(stack.pop())
        for name in _read(node):
            if name in agreed:
                needed.add(name)
            elif name not in seen:
                seen.add(name)
                stack.append(name)
    return ir.convenience.extract(model.graph, sorted(needed), [output])


def _read(node: ir.Node | None) -> Iterator[str]:
    """Names of the values a node reads, its subgraphs included."""
    if node is None:
        return
    yield from (str(v.name) for v in node.inputs if v is not None)
    for attribute in node.attributes.values():
        graphs = (
            [attribute.value]
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.value
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
        for graph in graphs:
            for inner in graph:
                yield from _read(inner)
