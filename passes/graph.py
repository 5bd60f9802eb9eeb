"""Small vocabulary over onnx_ir: reading constants and attributes, building nodes under fresh names."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

__all__ = [
    "SMALL",
    "Builder",
    "assume",
    "assumed",
    "attribute",
    "census",
    "constant",
    "dims",
    "op_name",
    "producer",
    "remove_dead",
    "remove_node",
    "same_shape",
    "scalar",
    "site_metadata",
    "sole_consumer",
]

#: Constants of at most this many elements may be read into memory by a rule.
SMALL: Final = 1 << 22
#: Metadata of a node: the assumptions it rests on.
_ASSUMES: Final = "deployml.assumes"


def op_name(node: ir.Node) -> str:
    """Qualified operator name: "Add", "com.microsoft::MultiHeadAttention"."""
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def census(model: ir.Model) -> dict[str, int]:
    """Operator name to node count over the graph and its subgraphs, sorted by name. Constants are not counted."""
    counts = Counter(op_name(n) for n in model.graph.all_nodes() if n.op_type != "Constant")
    return dict(sorted(counts.items()))


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """The Python value of an attribute, or ``default`` when it is absent."""
    found = node.attributes.get(name)
    if found is None or found.is_ref():
        return default
    return found.value


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """The node that makes a value, when it is one of ``ops`` (qualified names), else None."""
    node = None if value is None else value.producer()
    if node is None or (ops and op_name(node) not in ops):
        return None
    return node


def sole_consumer(value: ir.Value, *ops: str) -> ir.Node | None:
    """The one node that reads a value, when it is one of ``ops`` and the value is no graph output."""
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = next(iter(uses)).node
    return node if not ops or op_name(node) in ops else None


def constant(value: ir.Value | None, *, limit: int = SMALL) -> np.ndarray | None:
    """The constant a value holds (initializer or Constant node), or None.

    Tensors above ``limit`` elements read as None: weights are never copied to look at them.
    """
    if value is None:
        return None
    tensor = value.const_value
    if value.is_graph_input():
        return None
    if tensor is None:
        node = value.producer()
        if node is None or node.domain or node.op_type != "Constant":
            return None
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return None
    if tensor.size > limit or tensor.dtype == ir.DataType.STRING:
        return None
    return tensor.numpy()


def scalar(value: ir.Value | None) -> float | int | bool | None:
    """The one element of a constant, or None when it is no constant of one element."""
    array = constant(value)
    return array.reshape(-1)[0].item() if array is not None and array.size == 1 else None


def dims(value: ir.Value | None) -> tuple[int | str | None, ...] | None:
    """The shape as ints, symbol texts and None (unknown); None when the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def same_shape(left: ir.Value, right: ir.Value) -> bool:
    """Whether two values provably have the same shape (all dimensions known or the same symbol)."""
    a, b = dims(left), dims(right)
    return a is not None and a == b and None not in a


def site_metadata(node: ir.Node) -> dict[str, str]:
    """The part of a node's metadata that says where in the user's code it came from, and what it rests on."""
    return {k: v for k, v in node.metadata_props.items() if k.startswith("deployml.")}


def assume(node: ir.Node, names: Iterable[str]) -> None:
    """Note on a node the assumptions that it rests on. What replaces the node inherits them."""
    node.metadata_props[_ASSUMES] = ",".join(sorted({*assumed(node), *names}))


def assumed(node: ir.Node) -> tuple[str, ...]:
    """The assumptions that a node rests on, by whichever rewrite they came."""
    return tuple(name for name in node.metadata_props.get(_ASSUMES, "").split(",") if name)


def remove_node(node: ir.Node) -> None:
    """Take an unused node out of its graph."""
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)


def remove_dead(roots: Sequence[ir.Node]) -> list[ir.Node]:
    """Remove the given nodes where nothing reads them, then whatever fed only them. Returns what went."""
    gone: list[ir.Node] = []
    work = list(roots)
    while work:
        node = work.pop()
        if node.graph is None or any(o.uses() or o.is_graph_output() for o in node.outputs):
            continue
        feeders = [v.producer() for v in node.inputs if v is not None]
        remove_node(node)
        gone.append(node)
        work.extend(f for f in feeders if f is not None)
    return gone


class Builder:
    """Builds nodes beside a graph, under names that are fresh in it, and inserts them on request.

    Nothing touches the graph before :meth:`insert_before`; :meth:`discard` undoes everything. That is what
    makes a rewrite a transaction.

    Args:
        graph: The graph the nodes are meant for.
        prefix: Readable beginning of every name.
        like: A node whose metadata (module path, source line) the new nodes inherit.
        root: The graph that ``graph`` is the body of an If, Loop or Scan in: names are fresh in all of it, and
            constants become initializers of it.
    """

    def __init__(
        self, graph: ir.Graph, *, prefix: str, like: ir.Node | None = None, root: ir.Graph | None = None
    ) -> None:
        self.graph = root if root is not None else graph
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []
        self.relied_on: list[ir.Value] = []
        self._renames: list[tuple[ir.Node, ir.Node]] = []
        self._metadata = {} if like is None else site_metadata(like)
        self._names = _fresh_names(self.graph, prefix)

    def op(
        self,
        op: str,
        *inputs: ir.Value | None,
        outputs: int = 1,
        dtype: ir.DataType | None = None,
        shape: Sequence[int | str | ir.SymbolicDim | None] | ir.Shape | None = None,
        version: int | None = None,
        **attributes: Any,
    ) -> Any:
        """Make a node. ``op`` is a qualified name; trailing absent inputs are trimmed.

        ``dtype`` and ``shape`` describe the first output. Attributes that are None are left out.

        Returns:
            The output value, or a tuple of them when ``outputs`` is above 1.
        """
        domain, _, op_type = op.rpartition("::")
        given = list(inputs)
        while given and given[-1] is None:
            given.pop()
        node = ir.node(
            op_type,
            given,
            attributes={k: v for k, v in attributes.items() if v is not None},
            domain=domain,
            num_outputs=outputs,
            version=version,
            name=next(self._names),
        )
        node.metadata_props.update(self._metadata)
        for index, output in enumerate(node.outputs):
            output.name = f"{node.name}_out{index or ''}"
        first = node.outputs[0]
        if dtype is not None:
            first.dtype = dtype
        elif given and given[0] is not None and given[0].dtype is not None and op_type in _KEEPS_DTYPE:
            first.dtype = given[0].dtype
        if shape is not None:
            first.shape = shape if isinstance(shape, ir.Shape) else ir.Shape(shape)
        self.nodes.append(node)
        return first if outputs == 1 else tuple(node.outputs)

    def const(self, array: np.ndarray | ir.TensorProtocol) -> ir.Value:
        """Make an initializer. It joins the graph with the nodes."""
        tensor = ir.tensor(array) if isinstance(array, np.ndarray) else array
        name = next(self._names)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape),
            const_value=tensor,
        )
        tensor.name = name
        self.initializers.append(value)
        return value

    def scalar(self, number: float, *, like: ir.Value) -> ir.Value:
        """Make a rank-0 constant of the dtype of ``like`` (float32 when that is unknown)."""
        dtype = like.dtype or ir.DataType.FLOAT
        return self.const(np.asarray(number, dtype.numpy()))

    def keep_name(self, node: ir.Node) -> None:
        """Let the node built last carry the name of the one it replaces: a site keeps the name it was recorded by."""
        self._renames.append((self.nodes[-1], node))

    def relies_on(self, value: ir.Value) -> None:
        """Say that a rewrite is true only for this very constant: the proof keeps its values."""
        self.relied_on.append(value)

    def insert_before(self, anchor: ir.Node) -> None:
        """Put the nodes into the graph before ``anchor`` and register the constants they read."""
        assert anchor.graph is not None
        read = {id(v) for n in self.nodes for v in n.inputs if v is not None}
        for value in self.initializers:
            if id(value) in read or value.uses():
                self.graph.register_initializer(value)
        for new, old in self._renames:
            new.name, old.name = old.name, f"{old.name}.replaced"
        anchor.graph.insert_before(anchor, self.nodes)

    def take_over(self, old: ir.Value, new: ir.Value) -> None:
        """Let every reader of ``old`` read ``new``; a graph output keeps its name."""
        if new.dtype is None and old.dtype is not None:
            new.dtype = old.dtype
        if new.shape is None or None in (dims(new) or (None,)):
            new.shape = old.shape
        if old.is_graph_output():
            name = old.name
            old.name = f"{name}.replaced"
            new.name = name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)

    def discard(self) -> None:
        """Detach what was built, as if it had never been."""
        for node in self.nodes:
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
        self.nodes.clear()
        self.initializers.clear()


_KEEPS_DTYPE: Final = frozenset(
    "Add,Sub,Mul,Div,MatMul,Transpose,Reshape,Softmax,Expand,Unsqueeze,Squeeze,Concat,Slice,Tanh,Identity".split(",")  # noqa: SIM905
)


def _fresh_names(graph: ir.Graph, prefix: str) -> Iterator[str]:
    """Names that no node or value of the graph has: the prefix, then the prefix with a number."""
    counters: dict[str, itertools.count[int]] = graph.meta.setdefault("deployml.names", {})
    taken: set[str] = graph.meta.get("deployml.taken") or _names_of(graph)
    graph.meta["deployml.taken"] = taken
    for number in counters.setdefault(prefix, itertools.count()):
        name = f"{prefix}.{number}"
        if name not in taken:
            yield name


def _names_of(graph: ir.Graph) -> set[str]:
    names = {v.name for v in (*graph.inputs, *graph.initializers.values())}
    for node in graph.all_nodes():
        names.add(node.name)
        names.update(o.name for o in node.outputs)
    return {n for n in names if n}
