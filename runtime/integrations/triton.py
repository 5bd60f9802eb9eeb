"""The configuration of a model for Triton Inference Server's onnxruntime backend, as protobuf text.

Field names and values are those of Triton's ``model_config.proto``; the backend hands ``op_library_filename`` to
onnxruntime as it is, so it must be a path on the machine that serves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..errors import InputError, UnsupportedError

__all__ = ["Tensor", "config_text"]

#: numpy's name of a dtype to Triton's.
_TYPES: Final = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: name, numpy's name of its dtype, and its shape with -1 for every dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def config_text(
    name: str,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    *,
    max_batch: int = 0,
    gpu: bool = False,
    libraries: Sequence[str] = (),
) -> str:
    """The text of ``config.pbtxt``.

    Args:
        name: The model's, which is also that of its folder.
        inputs: All inputs.
        outputs: All outputs.
        max_batch: Requests that Triton may join along the first axis, which every input and output must then have
            dynamic; 0 leaves batching to the caller.
        gpu: Run on the GPU rather than on the CPU.
        libraries: Op libraries, as paths on the machine that serves.

    Raises:
        UnsupportedError: if Triton has no such type.
        InputError: if ``max_batch`` is asked for and some tensor has no dynamic first axis.
    """
    _check_batch([*inputs, *outputs], max_batch)
    lines = [f"name: {_quoted(name)}", 'backend: "onnxruntime"', 'default_model_filename: "model.onnx"']
    lines += [f"max_batch_size: {max_batch}"]
    lines += [_block("input", tensor, batched=max_batch > 0) for tensor in inputs]
    lines += [_block("output", tensor, batched=max_batch > 0) for tensor in outputs]
    lines += [f"instance_group [\n  {{\n    kind: {'KIND_GPU' if gpu else 'KIND_CPU'}\n    count: 1\n  }}\n]"]
    lines += ["dynamic_batching { }"] if max_batch > 1 else []
    if libraries:
        named = "\n".join(f"  op_library_filename: {_quoted(library)}" for library in libraries)
        lines += [f"model_operations {{\n{named}\n}}"]
    return "\n".join(lines) + "\n"


def _check_batch(tensors: Sequence[Tensor], max_batch: int) -> None:
    if max_batch < 0:
        raise InputError(f"a batch of {max_batch} makes no sense", hint="give --max-batch 0 or more")
    fixed = [t.name for t in tensors if not t.shape or t.shape[0] != -1]
    if max_batch and fixed:
        raise InputError(
            f"requests cannot be joined: {', '.join(fixed)} has no dynamic first axis",
            hint="leave --max-batch out, or export the model with a dynamic batch",
        )


def _block(kind: str, tensor: Tensor, *, batched: bool) -> str:
    if tensor.dtype not in _TYPES:
        raise UnsupportedError(
            f"{kind} '{tensor.name}' is {tensor.dtype}, which Triton does not serve",
            hint="export the model with inputs and outputs of a number type",
        )
    shape = tensor.shape[1:] if batched else tensor.shape
    fields = [f"name: {_quoted(tensor.name)}", f"data_type: {_TYPES[tensor.dtype]}"]
    # Triton wants at least one dimension; a scalar is served as a vector of one.
    fields += [f"dims: [ {', '.join(map(str, shape))} ]"] if shape else ["dims: [ 1 ]", "reshape { shape: [ ] }"]
    inner = "\n".join(f"    {field}" for field in fields)
    return f"{kind} [\n  {{\n{inner}\n  }}\n]"


def _quoted(text: str) -> str:
    """A string of protobuf's text format; its escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)
