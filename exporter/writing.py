"""Writing a fused graph and its unfused sibling, with one weights file between them where the weights are large."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx_ir as ir

from ..passes.cleanup.transposed import identity
from ..runtime.errors import InputError
from ..runtime.files import Staging
from ..runtime.memory import human_bytes
from .artifact import FileNames
from .options import ExternalData

__all__ = ["stamp", "weight_bytes", "write_models"]

#: Weights above this many bytes go to a file of their own; both graphs read it, where embedding would write them twice.
_EMBED_LIMIT: Final = 128 << 20
#: protobuf's limit of a message, less some room for the graph.
_PROTOBUF_LIMIT: Final = (2 << 30) - (16 << 20)
#: Tensors up to this many bytes stay in the model file: shapes and scalars are read with the graph.
_SMALL: Final = 1024

#: IR version that came with each opset (onnx's release table). Older ones have no node metadata.
_IR_VERSIONS: Final[dict[int, int]] = {20: 10, 21: 10, 22: 10, 23: 11, 24: 12, 25: 13}


def stamp(model: ir.Model, *, properties: dict[str, str]) -> None:
    """Sign a model, in place: producer, IR version for its opset, ``properties`` with sorted keys as metadata."""
    opset = model.graph.opset_imports.get("", 0)
    model.ir_version = max(10, _IR_VERSIONS.get(opset, model.ir_version if opset > max(_IR_VERSIONS) else 10))
    model.producer_name = "deployml"
    model.producer_version = properties.get("deployml.version", "")
    for key in sorted(properties):
        model.metadata_props[key] = properties[key]


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of a model, each tensor counted once."""
    tensors = {id(v.const_value): v.const_value for v in _initializers([model]) if v.const_value is not None}
    return sum(t.nbytes for t in tensors.values())


def write_models(
    staging: Staging, names: FileNames, model: ir.Model, unfused: ir.Model | None, *, external_data: ExternalData
) -> dict[str, str]:
    """Write a model, and its unfused sibling where there is one, into a staging folder.

    Args:
        staging: Receives the files.
        names: What they are called.
        model: The product.
        unfused: The same before fusion; tensors that both hold are written once.
        external_data: Where the weights go.

    Returns:
        Role ("model", "data", "unfused") to file name.

    Raises:
        InputError: if the weights must be embedded and are larger than protobuf allows.
    """
    size = weight_bytes(model)
    if external_data == "never" and size > _PROTOBUF_LIMIT:
        raise InputError(
            f"{human_bytes(size)} of weights do not fit into one ONNX file",
            hint="leave --external-data never out: they then go to a file beside the model",
        )
    graphs = [(names.model, model)] + ([(names.unfused, unfused)] if unfused is not None else [])
    roles = {"model": names.model}
    models = [m for _, m in graphs]
    apart = external_data == "always" or (external_data == "auto" and size > _EMBED_LIMIT)
    with _placed(models, staging.folder, names.data if apart else None) as written:
        _write(staging, graphs)
    if written:
        roles["data"] = names.data
    else:
        staging.remove(names.data)
    if unfused is not None:
        roles["unfused"] = names.unfused
    else:
        staging.remove(names.unfused)
    return roles


def _write(staging: Staging, graphs: Sequence[tuple[str, ir.Model]]) -> None:
    for name, model in graphs:
        staging.write(name, ir.serde.serialize_model(model).SerializeToString(deterministic=True))


@contextmanager
def _placed(models: Sequence[ir.Model], folder: Path, data: str | None) -> Iterator[bool]:
    """Put every initializer where it is to be stored, for as long as the block runs.

    Large ones go to one new file ``data``; all others, and without ``data`` all, into the model files, also those
    that a source kept in a file of its own. Yields whether the file was written.
    """
    values = [v for v in _initializers(models) if v.const_value is not None]
    before = [v.const_value for v in values]
    large = [v for v in values if data is not None and v.const_value.nbytes > _SMALL]
    try:
        if large and data is not None:
            _move_out(large, folder, data)
        for value, tensor in zip(values, before, strict=True):
            if value.const_value is tensor and isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
        yield bool(large)
    finally:
        for value, tensor in zip(values, before, strict=True):
            value.const_value = tensor


def _move_out(values: Sequence[ir.Value], folder: Path, data: str) -> None:
    owners = _owners(values)
    unique = {id(t): t for t in owners}
    written = ir.external_data.convert_tensors_to_external(list(unique.values()), folder, data)
    places = dict(zip(unique, written, strict=True))
    for value, owner in zip(values, owners, strict=True):
        value.const_value = _renamed(places[id(owner)], value, folder)


def _renamed(place: ir.ExternalTensor, value: ir.Value, folder: Path) -> ir.ExternalTensor:
    tensor = value.const_value
    assert tensor is not None
    return ir.ExternalTensor(
        place.location,
        place.offset,
        place.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=str(value.name),
        base_dir=folder,
    )


def _owners(values: Sequence[ir.Value]) -> list[ir.TensorProtocol]:
    """For each value the tensor whose bytes stand for it: equal tensors that are different objects share one."""
    uses = Counter(identity(v.const_value) for v in values if v.const_value is not None)
    stands: dict[Hashable, ir.TensorProtocol] = {}
    owners = []
    for value in values:
        tensor = value.const_value
        assert tensor is not None
        key = identity(tensor)
        if uses[key] == 1:  # what both graphs hold needs no look at its bytes
            key = (tensor.nbytes, hashlib.sha256(tensor.tobytes()).digest())
        owners.append(stands.setdefault(key, tensor))
    return owners


def _initializers(models: Sequence[ir.Model]) -> list[ir.Value]:
    return [v for model in models for graph in model.graphs() for v in graph.initializers.values()]
