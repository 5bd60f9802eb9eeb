"""Weights in another order of axes, computed when they are written out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir

__all__ = ["TransposedTensor", "identity"]


class TransposedTensor(ir.LazyTensor):
    """A tensor whose axes are those of another one in the order ``perm``; nothing is computed until it is read.

    Args:
        source: The tensor, of a known shape.
        perm: Axis ``i`` of the new tensor is axis ``perm[i]`` of ``source``, as in ONNX's Transpose.
        name: Of the new tensor.
    """

    __slots__ = ("_origin", "_perm")

    def __init__(self, source: ir.TensorProtocol, perm: Sequence[int], *, name: str) -> None:
        def read() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(source.numpy().transpose(perm)), dtype=source.dtype)

        shape = ir.Shape([source.shape[axis] for axis in perm])
        super().__init__(read, dtype=source.dtype, shape=shape, name=name)
        if isinstance(source, TransposedTensor):
            source, perm = source._origin, [source._perm[axis] for axis in perm]
        self._origin, self._perm = source, tuple(perm)

    @property
    def identity(self) -> Hashable:
        """Equal for two tensors of one origin and order, as long as both live."""
        return id(self._origin), self._perm


def identity(tensor: ir.TensorProtocol) -> Hashable:
    """Equal for tensors that are one, or the same transpose of one, so that no number has to be looked at."""
    return tensor.identity if isinstance(tensor, TransposedTensor) else id(tensor)
