"""numpy arrays to and from onnxruntime's values, bfloat16 included (which onnxruntime's numpy path refuses)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import onnxruntime

from .session import feeds_for, session_dtype

__all__ = ["from_ort", "session_runner", "to_ort"]

_BFLOAT16: Final = "tensor(bfloat16)"
_ONNX_BFLOAT16: Final = 16  # TensorProto.BFLOAT16


def to_ort(array: np.ndarray, device: str = "cpu") -> onnxruntime.OrtValue:
    """Copy ``array`` into a value on ``device`` ("cpu" or "cuda"); bfloat16 stays in host memory."""
    if array.dtype.name != "bfloat16":
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0)
    bits = np.asarray(array, order="C").view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BFLOAT16)


def from_ort(value: onnxruntime.OrtValue) -> np.ndarray:
    """Copy a value into an array of its own. bfloat16 must be in host memory."""
    if value.data_type() != _BFLOAT16:
        return np.array(value.numpy())
    shape = tuple(value.shape())
    count = int(np.prod(shape))
    if count == 0:
        return np.empty(shape, session_dtype(_BFLOAT16))
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * count).from_address(value.data_ptr()))
    return bits.copy().reshape(shape).view(session_dtype(_BFLOAT16))


def session_runner(
    session: onnxruntime.InferenceSession,
) -> Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]:
    """A callable from named arrays to the outputs in order, as :func:`deployml.runtime.parity.validate` takes.

    It raises InputError where the arrays do not fit the model's inputs.
    """
    kinds = {value.type for value in (*session.get_inputs(), *session.get_outputs())}

    def run(named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(v) for v in session.run(None, feeds_for(session, named))]

    def run_values(named: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        values = {name: to_ort(array) for name, array in feeds_for(session, named).items()}
        return [from_ort(value) for value in session.run_with_ort_values(None, values)]

    return run_values if _BFLOAT16 in kinds else run
