"""Cutting a sub-graph out of a model, so that it can be run on its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .graph import op_name

__all__ = ["Region", "cut_out", "to_model"]

#: A region of more nodes than this is no local rewrite any more; the proof refuses it.
NODE_LIMIT = 3000


@dataclass(frozen=True, slots=True)
class Region:
    """A connected piece of a graph: ``nodes`` in execution order compute ``outputs`` from ``inputs``.

    ``constants`` are the initializers it reads.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    constants: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]


class _Cutter:
    """Walks from outputs to the cut by an explicit stack: graphs are deeper than Python's recursion limit."""

    def __init__(self, cut: Iterable[ir.Value]) -> None:
        self.cut = {id(v) for v in cut}
        self.nodes: dict[int, ir.Node] = {}
        self.inputs: dict[int, ir.Value] = {}
        self.constants: dict[int, ir.Value] = {}
        self.weak: dict[int, ir.Value] = {}
        self.entered = 0

    def walk(self, outputs: Iterable[ir.Value]) -> None:
        stack: list[tuple[ir.Value, bool]] = [(v, False) for v in outputs][::-1]
        while stack:
            value, leaving = stack.pop()
            node = value.producer()
            if leaving:
                assert node is not None
                self.nodes.setdefault(id(node), node)
                continue
            if node is None or id(node) in self.nodes or self._stop(value, node):
                continue
            self.entered += 1
            if self.entered > NODE_LIMIT:
                raise ValueError(f"more than {NODE_LIMIT} nodes between the rewrite and its inputs")
            stack.append((value, True))
            if node.domain == "" and node.op_type in ("Shape", "Size") and _known(node.inputs[0]):
                self.weak[id(node.inputs[0])] = node.inputs[0]  # type: ignore[assignment]
                continue
            stack.extend((v, False) for v in reversed(node.inputs) if v is not None and self._fresh(v))

    def _fresh(self, value: ir.Value) -> bool:
        if value.producer() is None:
            (self.constants if _is_constant(value) else self.inputs).setdefault(id(value), value)
            return False
        return True

    def _stop(self, value: ir.Value, node: ir.Node) -> bool:
        opaque = any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())
        if id(value) not in self.cut and not opaque:
            return False
        self.inputs.setdefault(id(value), value)
        return True


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _known(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and value.dtype is not None


def cut_out(outputs: Sequence[ir.Value], cut: Iterable[ir.Value]) -> Region:
    """The region that computes ``outputs`` from ``cut``, graph inputs and constants.

    Of a tensor whose shape alone is read, only the shape matters: it becomes an input too, unless the region
    computes it anyway. What an If or Loop makes is an input.

    Raises:
        ValueError: if the region grows beyond :data:`NODE_LIMIT` nodes.
    """
    cutter = _Cutter(cut)
    for value in outputs:
        if value.producer() is None:
            cutter._fresh(value)
    cutter.walk(outputs)
    made = {id(o) for n in cutter.nodes.values() for o in n.outputs}
    for key, value in cutter.weak.items():
        if key in made or key in cutter.constants:
            continue
        if _is_constant(value):
            cutter.constants[key] = value
        else:
            cutter.inputs.setdefault(key, value)
    return Region(
        tuple(_ordered(cutter.nodes.values(), made)),
        tuple(cutter.inputs.values()),
        tuple(cutter.constants.values()),
        tuple(outputs),
    )


def _ordered(nodes: Iterable[ir.Node], made: set[int]) -> list[ir.Node]:
    """Post-order is execution order except around weak edges; place those readers after what they read."""
    waiting, ready = list(nodes), set[int]()
    order: list[ir.Node] = []
    while waiting:
        later = []
        for node in waiting:
            if all(v is None or id(v) not in made or id(v) in ready for v in node.inputs):
                order.append(node)
                ready.update(id(o) for o in node.outputs)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError("the sub-graph has a cycle")
        waiting = later
    return order


def to_model(
    region: Region,
    *,
    opsets: dict[str, int],
    ir_version: int,
    inputs: Sequence[ir.Value],
    keep: Callable[[ir.Value], bool],
    functions: Iterable[ir.Function] = (),
) -> tuple[ir.Model, str]:
    """Copy a region into a model of its own, with names that depend on its structure alone.

    Args:
        region: What to copy.
        opsets: Operator-set imports of the model it came from.
        ir_version: IR version for the model.
        inputs: Values that are inputs ``i0``, ``i1``, ... in this order: a superset of the region's own. One that
            the region computes itself (another form reads its shape) is declared and not read.
        keep: Whether a constant keeps its value. The others are expected among ``inputs``.
        functions: Local functions the nodes may call; those they do call are shared with the model, not copied.

    Returns:
        The model and a digest of its structure, equal for regions that compute the same thing.
    """
    digest = hashlib.sha256()
    mapping: dict[int, ir.Value] = {}
    own = {id(v) for v in region.inputs}
    declared: list[ir.Value] = []
    for index, value in enumerate(inputs):
        mapping[id(value)] = _like(value, f"i{index}")
        declared.append(mapping[id(value)])
        digest.update(f"i{index}:{value.dtype}:{_rank(value)};".encode())
    initializers = []
    for index, value in enumerate(c for c in region.constants if id(c) not in mapping):
        assert keep(value) and value.const_value is not None
        clone = ir.Value(name=f"c{index}", type=value.type, shape=value.shape, const_value=value.const_value)
        mapping[id(value)] = clone
        initializers.append(clone)
        digest.update(f"c{index}:{_tensor_digest(value.const_value)};".encode())
    nodes = []
    for position, node in enumerate(region.nodes):
        attributes = list(node.attributes.values())
        clone_node = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else mapping[id(v)] for v in node.inputs],
            attributes,
            num_outputs=len(node.outputs),
            version=node.version,
            name=f"n{position}",
        )
        names = ",".join("" if v is None else str(v.name) for v in clone_node.inputs)
        digest.update(f"{op_name(node)}({names}){_attributes_digest(attributes)}->{len(node.outputs)};".encode())
        for slot, (old, new) in enumerate(zip(node.outputs, clone_node.outputs, strict=True)):
            _describe(new, old, f"v{position}_{slot}" if old.name else "")
            if id(old) not in own:  # one output of a node may be cut while another is computed
                mapping[id(old)] = new
        nodes.append(clone_node)
    outputs = [mapping[id(v)] for v in region.outputs]
    digest.update(",".join(str(v.name) for v in outputs).encode())
    graph = ir.Graph(
        declared,
        outputs,
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(opsets),
        name="region",
    )
    model = ir.Model(graph, ir_version=ir_version, functions=_called(region.nodes, functions))
    return model, digest.hexdigest()


def _called(nodes: Iterable[ir.Node], functions: Iterable[ir.Function]) -> list[ir.Function]:
    """The functions that nodes call, and those that these call."""
    known = {f.identifier(): f for f in functions}
    found: dict[ir.OperatorIdentifier, ir.Function] = {}
    waiting = list(nodes) if known else []
    while waiting:
        function = known.get(waiting.pop().op_identifier())
        if function is not None and function.identifier() not in found:
            found[function.identifier()] = function
            waiting.extend(function.all_nodes())
    return list(found.values())


def _describe(new: ir.Value, old: ir.Value, name: str) -> None:
    new.name = name
    if old.dtype is not None:
        new.type = ir.TensorType(old.dtype)
        new.shape = _fixed(old.shape)


def _like(value: ir.Value, name: str) -> ir.Value:
    if value.dtype is None:
        raise ValueError(f"the type of '{value.name}' is not known")
    if value.shape is None:
        raise ValueError(f"the rank of '{value.name}' is not known")
    return ir.Value(name=name, type=ir.TensorType(value.dtype), shape=_fixed(value.shape))


def _fixed(shape: ir.Shape | None) -> ir.Shape | None:
    """A shape with its numbers kept and its symbols forgotten."""
    return None if shape is None else ir.Shape([d if isinstance(d, int) else None for d in shape])


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _tensor_digest(tensor: ir.TensorProtocol) -> str:
    array = np.ascontiguousarray(tensor.numpy())
    return f"{tensor.dtype}{tuple(array.shape)}{hashlib.sha256(array.tobytes()).hexdigest()}"


def _attributes_digest(attributes: Sequence[ir.Attr]) -> str:
    parts = []
    for attr in sorted(attributes, key=lambda a: a.name):
        value = attr.value
        if attr.type == ir.AttributeType.TENSOR:
            value = _tensor_digest(value)
        parts.append(f"{attr.name}={value!r}")
    return "{" + ",".join(parts) + "}"
