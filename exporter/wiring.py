"""What a graph computes, as a digest: operators, attributes and wiring, without names or the order of nodes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from ..passes.graph import op_name

__all__ = ["Contents", "attribute_texts", "contents_of", "wiring_of"]

_DIGITS: Final = 16
#: Tensors of integers up to this many elements are axes and shapes, not weights.
_SMALL: Final = 64
_INTEGERS: Final = (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL)

#: The digest of a tensor's type, shape and contents.
Contents = Callable[[ir.TensorProtocol], bytes]


def wiring_of(model: ir.Model, contents: Contents | None = None) -> str:
    """A digest of how each output is computed from the inputs, by their names.

    Every value's digest is made of its operator, its attributes and the digests of what it is computed from, so that
    neither other names nor another order of the nodes change anything.

    Args:
        model: The model.
        contents: Digests weights, see :func:`contents_of`; None takes type and shape alone, and what is in small
            tensors of integers, which are axes and shapes.
    """
    walk = _Walk(contents)
    for value in model.graph.inputs:
        if value.const_value is None:
            walk.seen[id(value)] = _digest(b"input", value.name)
    parts = [walk.graph(model.graph), *(value.name for value in model.graph.outputs)]
    for _, function in sorted(model.functions.items()):
        for number, value in enumerate(function.inputs):
            walk.seen[id(value)] = _digest(b"argument", number)
        parts += [str(function.identifier()), walk.graph(function)]
    return _digest(*parts).hex()[:_DIGITS]


def contents_of(tensor: ir.TensorProtocol) -> bytes:
    """The digest of a tensor's type, shape and contents, however it is stored."""
    if tensor.dtype == ir.DataType.STRING:
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in tensor.numpy().ravel().tolist()]
        return hashlib.sha256(_form(tensor) + b"".join(len(t).to_bytes(8, "big") + t for t in texts)).digest()
    return hashlib.sha256(_form(tensor) + tensor.tobytes()).digest()


def attribute_texts(node: ir.Node) -> dict[str, str]:
    """The numbers and texts among a node's attributes, as people read them."""
    plain = [a for a in node.attributes.values() if not a.is_ref() and a.type in _READABLE]
    return {attribute.name: _text(attribute.value) for attribute in sorted(plain, key=lambda a: a.name)}


_READABLE: Final = frozenset(
    getattr(ir.AttributeType, name) for name in ("INT", "FLOAT", "STRING", "INTS", "FLOATS", "STRINGS")
)


class _Walk:
    """One walk over a model; values are known by their identity, in whichever graph they are read."""

    def __init__(self, contents: Contents | None) -> None:
        self.contents = contents
        self.seen: dict[int, bytes] = {}

    def graph(self, graph: ir.Graph | ir.Function) -> bytes:
        """The digest of a graph's outputs; its inputs are known already."""
        for node in graph:
            found = b"" if node.op_type == "Constant" and node.domain == "" else self.node(node)
            for number, value in enumerate(node.outputs):
                self.seen[id(value)] = _digest(found, number) if found else self.value(value)
        return _digest(*(self.value(value) for value in graph.outputs))

    def node(self, node: ir.Node) -> bytes:
        """The digest of an operator with its attributes and inputs."""
        attributes = [
            part for name in sorted(node.attributes) for part in (name, self.attribute(node.attributes[name]))
        ]
        return _digest(op_name(node), node.overload, len(attributes), *attributes, *map(self.value, node.inputs))

    def value(self, value: ir.Value | None) -> bytes:
        """The digest of a value; of a constant what it holds, a node or an initializer alike."""
        if value is None:
            return _digest(b"left out")
        if id(value) not in self.seen:
            tensor = ir.convenience.get_const_tensor(value)
            self.seen[id(value)] = _digest(b"unknown") if tensor is None else self.weight(tensor)
        return self.seen[id(value)]

    def weight(self, tensor: ir.TensorProtocol) -> bytes:
        """The digest of a constant, with its contents where they are asked for or are no weights."""
        if self.contents is not None:
            return self.contents(tensor)
        return contents_of(tensor) if tensor.dtype in _INTEGERS and tensor.size <= _SMALL else _digest(_form(tensor))

    def attribute(self, attribute: ir.Attr) -> bytes:
        """The digest of an attribute's value."""
        if attribute.is_ref():
            return _digest(b"reference", attribute.ref_attr_name)
        if attribute.type == ir.AttributeType.GRAPH:
            return self.subgraph(attribute.value)
        if attribute.type == ir.AttributeType.GRAPHS:
            return _digest(*map(self.subgraph, attribute.value))
        if attribute.type == ir.AttributeType.TENSOR:
            return contents_of(attribute.value)
        return _digest(attribute.type.name, _text(attribute.value))

    def subgraph(self, graph: ir.Graph) -> bytes:
        """The digest of a branch or a loop's body."""
        for number, value in enumerate(graph.inputs):
            self.seen[id(value)] = _digest(b"inner", number)
        return _digest(len(graph.inputs), self.graph(graph))


def _text(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return str(np.float32(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Iterable) and not isinstance(value, str):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)


def _form(tensor: ir.TensorProtocol) -> bytes:
    return f"{tensor.dtype}{list(tensor.shape.numpy())}".encode()


def _digest(*parts: Any) -> bytes:
    """The digest of a list of texts, bytes and numbers, each with its length."""
    found = hashlib.sha256()
    for part in parts:
        raw = part if isinstance(part, bytes) else str(part).encode()
        found.update(len(raw).to_bytes(8, "big") + raw)
    return found.digest()
