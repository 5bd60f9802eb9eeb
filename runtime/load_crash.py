"""Models that an optimizer of onnxruntime ends the process on, told from their bytes before they are opened.

NchwcTransformer reads the schema of every node by a pointer that is null for nodes which another optimizer has made
a moment before: the MatMul fusion, when it moves a Cast in front of a Transpose (microsoft/onnxruntime issue 28392,
seen in 1.24 to 1.31). Such a Cast stands in the file, or onnxruntime puts it there for float16, which the CPU has
few kernels for. The optimizer blocks the channels of convolutions; nothing else is lost without it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

__all__ = ["CRASHING", "optimizers_to_avoid"]

#: What onnxruntime calls the optimizer, for ``InferenceSession(..., disabled_optimizers=[...])``.
CRASHING: Final = "NchwcTransformer"

_FLOAT16: Final = 10
#: Operators that onnxruntime takes away before, or moves a Transpose across.
_THIN: Final = frozenset((b"Identity", b"Dropout", b"Reshape", b"Squeeze", b"Unsqueeze"))

_Bytes: TypeAlias = bytes | mmap.mmap
_Field: TypeAlias = tuple[int, int, int]


def optimizers_to_avoid(model: bytes | Path) -> tuple[str, ...]:
    """The optimizers of onnxruntime to switch off for a model, because it may not survive them.

    Args:
        model: An ONNX model's bytes or path. Weights are passed over, not read.

    Returns:
        ``("NchwcTransformer",)`` for a model that holds float16 (a tensor, or a Cast to it) or casts what a Transpose
        gives; nothing for other models, and for what is no ONNX model: onnxruntime says so when it is opened.
    """
    with suppress(_NoModelError, OSError, ValueError):
        if isinstance(model, bytes):
            return (CRASHING,) if _in_danger(model) else ()
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            return (CRASHING,) if _in_danger(whole) else ()
    return ()


class _NoModelError(Exception):
    """The bytes are no protobuf message of the kind that they are read as."""


@dataclass(slots=True)
class _Scope:
    """The nodes of one graph or function: what Transposes give, thin nodes by their input, and what is cast."""

    transposed: set[bytes] = field(default_factory=set)
    thin: list[tuple[bytes, bytes]] = field(default_factory=list)
    cast: set[bytes] = field(default_factory=set)

    def casts_a_transposed(self) -> bool:
        found = set(self.transposed)
        for source, result in self.thin:  # in the order of the file, which is that of the data
            if source in found:
                found.add(result)
        return not found.isdisjoint(self.cast)


def _in_danger(data: _Bytes) -> bool:
    for number, start, end in _fields(data, 0, len(data)):  # ModelProto
        if number == 7 and _graph(data, start, end):
            return True
        if number == 25 and not _is_own(data, start, end) and _nodes(data, start, end, node_field=7):
            return True
    return False


def _is_own(data: _Bytes, start: int, end: int) -> bool:
    """Whether a FunctionProto is of an own operator: its Casts to float32 vanish where the model is of float32."""
    return any(number == 10 and data[first:last] == b"deployml" for number, first, last in _fields(data, start, end))


def _graph(data: _Bytes, start: int, end: int) -> bool:
    for number, first, last in _fields(data, start, end):
        if number == 5 and _is_half_tensor(data, first, last):  # initializer
            return True
        if number in (11, 12, 13) and _is_half(data, first, last):  # input, output, value_info
            return True
    return _nodes(data, start, end, node_field=1)


def _is_half(data: _Bytes, start: int, end: int) -> bool:
    """Whether a ValueInfoProto is of a float16 tensor: type, tensor_type, elem_type."""
    for path in (2, 1):
        inner = next(((a, b) for number, a, b in _fields(data, start, end) if number == path), None)
        if inner is None:
            return False
        start, end = inner
    return _field(data, start, end, 1) == _FLOAT16


def _is_half_tensor(data: _Bytes, start: int, end: int) -> bool:
    return _field(data, start, end, 2) == _FLOAT16  # TensorProto.data_type


def _nodes(data: _Bytes, start: int, end: int, *, node_field: int) -> bool:
    scope = _Scope()
    for number, first, last in _fields(data, start, end):
        if number == node_field and _node(data, first, last, scope):
            return True
    return scope.casts_a_transposed()


def _node(data: _Bytes, start: int, end: int, scope: _Scope) -> bool:
    """Note a NodeProto in its scope; whether it holds float16 or a graph in danger."""
    inputs, outputs, attributes, op = list[bytes](), list[bytes](), list[tuple[int, int]](), b""
    for number, first, last in _fields(data, start, end):
        if number == 1:
            inputs.append(data[first:last])
        elif number == 2:
            outputs.append(data[first:last])
        elif number == 4:
            op = data[first:last]
        elif number == 5:
            attributes.append((first, last))
    if op == b"Transpose":
        scope.transposed.update(outputs)
    elif op == b"Cast":
        scope.cast.update(inputs)
    elif op in _THIN and inputs and outputs:
        scope.thin.append((inputs[0], outputs[0]))
    return any(_attribute(data, first, last, op == b"Cast") for first, last in attributes)


def _attribute(data: _Bytes, start: int, end: int, of_cast: bool) -> bool:
    name = b""
    for number, first, last in _fields(data, start, end):  # AttributeProto
        if number == 1:
            name = data[first:last]
        elif number in _HELD and _HELD[number](data, first, last):
            return True
    return of_cast and name == b"to" and _field(data, start, end, 3) == _FLOAT16  # i


#: What an AttributeProto may hold, by field: t, g, graphs.
_HELD: Final = {5: _is_half_tensor, 6: _graph, 11: _graph}


def _field(data: _Bytes, start: int, end: int, wanted: int) -> int | None:
    """The last number stored under a field."""
    found = None
    for number, first, last in _fields(data, start, end, numbers=True):
        if number == wanted and last < 0:
            found = first
    return found


def _fields(data: _Bytes, start: int, end: int, *, numbers: bool = False) -> Iterator[_Field]:
    """The fields of a message in place: number, begin and end of what has a length; with ``numbers`` (value, -1) too.

    Raises:
        _NoModelError: where the bytes end early or hold what protobuf does not know.
    """
    while start < end:
        key, start = _varint(data, start, end)
        kind, number = key & 7, key >> 3
        if kind == 0:
            value, start = _varint(data, start, end)
            if numbers:
                yield number, value, -1
        elif kind == 2:
            size, start = _varint(data, start, end)
            if start + size > end:
                raise _NoModelError
            yield number, start, start + size
            start += size
        elif kind in (1, 5):
            start += 8 if kind == 1 else 4
        else:
            raise _NoModelError


def _varint(data: _Bytes, start: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while start < end and shift < 70:
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
    raise _NoModelError
