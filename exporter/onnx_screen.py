"""What must hold of an ONNX file before anything is done with it: it says what it is made of, and says it once."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import onnx_ir as ir

from ..passes.graph import dims
from ..runtime.errors import InputError

__all__ = ["screen"]

#: More elements than this in one input of fixed size is no size that anybody feeds.
_ABSURD: Final = 1 << 34

_DAMAGED: Final = "export the model anew; whatever wrote this file wrote it wrong, or it was damaged since"


def screen(model: ir.Model, path: Path) -> None:
    """Refuse a graph that cannot be what its writer meant, and weights that are not what the graph says they are.

    No weights are read: files beside the model are looked at by name and size alone.

    Raises:
        InputError: naming the value, node or weight at fault.
    """
    for problem in _problems(model):
        raise InputError(f"'{path.name}' is no valid ONNX model: {problem}", hint=_DAMAGED)
    for name, tensor in _weights(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_place(name, tensor, path)
        elif (problem := _short(tensor)) is not None:
            raise InputError(f"'{path.name}' is no valid ONNX model: weight '{name}' {problem}", hint=_DAMAGED)


def _problems(model: ir.Model) -> Iterator[str]:
    """Sentences on the structure, the first one first."""
    if not all(isinstance(name, str) for name in _names(model)):
        yield "a name in it is no text"
    for domain, version in sorted(model.graph.opset_imports.items()):
        if version < 1:
            yield f"it asks for version {version} of the operators of '{domain or 'ai.onnx'}'"
    yield from _interface(model.graph)
    for graph in model.graphs():
        yield from _loose_ends(graph)
        yield from _same_names(graph)
    yield from _order(model.graph)
    yield from _recursion(model)


def _names(model: ir.Model) -> Iterator[object]:
    """Every name of the graph; protobuf hands out those that are no UTF-8 as bytes."""
    yield from model.graph.opset_imports
    for key in model.functions:
        yield from key
    for graph in (*model.graphs(), *(f.graph for f in model.functions.values())):
        yield from (v.name or "" for v in (*graph.inputs, *graph.outputs, *graph.initializers.values()))
        for node in graph:
            yield from (node.name or "", node.op_type, node.domain, *node.attributes)
            yield from (v.name or "" for v in (*node.inputs, *node.outputs) if v is not None)
    for _, tensor in _weights(model):
        if isinstance(tensor, ir.ExternalTensor):
            yield tensor.location


def _interface(graph: ir.Graph) -> Iterator[str]:
    for value in graph.inputs:
        sizes = [d for d in dims(value) or () if isinstance(d, int)]
        if any(d < 0 for d in sizes):
            yield f"input '{value.name}' has the shape {list(dims(value) or ())}"
        if math.prod(sizes) > _ABSURD:
            yield f"input '{value.name}' has the fixed shape {list(dims(value) or ())}, which no machine holds"


def _loose_ends(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        if not node.op_type:
            yield f"node '{node.name}' names no operator"
        if not node.outputs:
            yield f"node '{node.name or node.op_type}' has no output"
        for value in node.inputs:
            if value is not None and not _made(value):
                yield f"node '{node.name or node.op_type}' reads '{value.name}', which nothing makes"
    for value in graph.outputs:
        if not _made(value):
            yield f"output '{value.name}' is made by nothing"


def _same_names(graph: ir.Graph) -> Iterator[str]:
    """onnxruntime loads no graph in which two nodes share a name; nodes without one are no matter."""
    seen: dict[str, ir.Node] = {}
    for node in graph:
        if not node.name:
            continue
        first = seen.setdefault(node.name, node)
        if first is not node:
            made = (first.outputs[0].name, node.outputs[0].name) if first.outputs and node.outputs else ("?", "?")
            yield (
                f"two nodes are called '{node.name}': the {first.op_type} that makes '{made[0]}' and the "
                f"{node.op_type} that makes '{made[1]}'"
            )


def _made(value: ir.Value) -> bool:
    return value.producer() is not None or value.is_graph_input() or value.is_initializer()


def _order(graph: ir.Graph) -> Iterator[str]:
    """A cycle; a graph that is only written in another order is put in order."""
    seen: set[int] = set()
    for node in graph:
        before = [p for v in node.inputs if v is not None for p in [v.producer()] if p is not None and p.graph is graph]
        if any(id(p) not in seen for p in before):
            break
        seen.add(id(node))
    else:
        return
    try:
        graph.sort()
    except ValueError:
        yield "its nodes form a cycle"


def _recursion(model: ir.Model) -> Iterator[str]:
    calls = {
        key: {n.op_identifier() for n in function.graph.all_nodes()} & set(model.functions)
        for key, function in model.functions.items()
    }
    while leaves := {key for key, called in calls.items() if not called & set(calls)}:
        for key in leaves:
            del calls[key]
    if calls:
        yield f"its function '{min(name for _, name, _ in calls)}' calls itself"


def _weights(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    graphs: Iterable[ir.Graph] = model.graphs()
    for graph in graphs:
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value


def _short(tensor: ir.TensorProtocol) -> str | None:
    """What is wrong with a weight inside the file."""
    if tensor.dtype == ir.DataType.UNDEFINED:
        return "has no type"
    shape = tensor.shape.numpy()
    if any(d < 0 for d in shape):
        return f"has the shape {list(shape)}"
    if isinstance(tensor, ir.StringTensor):
        held = len(tensor.string_data())
        return None if held == tensor.size else f"of shape {list(shape)} has {held} texts"
    if not isinstance(tensor, ir.serde.TensorProtoTensor):
        return None
    proto = tensor.raw
    if not proto.HasField("raw_data"):
        return _typed(tensor)
    held, said = len(proto.raw_data), tensor.nbytes
    return None if held == said else f"of shape {list(shape)} needs {said} bytes and has {held}"


def _typed(tensor: ir.serde.TensorProtoTensor) -> str | None:
    """What is wrong with a weight that lies in the field of its type rather than in bytes."""
    try:
        tensor.tobytes()
    except (ValueError, TypeError, AssertionError, OverflowError) as error:
        detail = " ".join(str(error).split())[:120] or "they are of another type"
        return f"of shape {list(tensor.shape.numpy())} does not hold its elements: {detail}"
    return None


def _check_place(name: str, tensor: ir.ExternalTensor, path: Path) -> None:
    """See to it that a weight in a file of its own lies there, within the model's folder, whole."""
    location = str(tensor.location)
    if not location:
        raise InputError(f"'{path.name}' does not say in which file its weight '{name}' lies", hint=_DAMAGED)
    if os.path.isabs(location) or ".." in PurePosixPath(location.replace("\\", "/")).parts:
        raise InputError(
            f"the weights of '{path.name}' are said to lie outside its folder, in '{location}'",
            hint="put the weights beside the model and save it with that name; a model must not read other files",
        )
    place = Path(tensor.path)
    if not place.is_file():
        raise InputError(
            f"the weights of '{path.name}' are missing: there is no {place.name} beside it",
            hint="put the weights file next to the model; the two belong together",
        )
    offset, said = tensor.offset or 0, tensor.nbytes
    length = said if tensor.length is None else tensor.length
    if offset < 0 or length != said:
        raise InputError(
            f"weight '{name}' of '{path.name}' needs {said} bytes and is said to have {length} from byte {offset}",
            hint=_DAMAGED,
        )
    if place.stat().st_size < offset + length:
        raise InputError(
            f"the weights file {place.name} is too short for '{name}' of '{path.name}'",
            hint="copy both files again; they must come from one export",
        )
