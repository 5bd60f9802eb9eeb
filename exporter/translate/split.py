"""Splitting a tensor along an axis of known size: plain ``Split`` instead of ONNX sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from .pieces import slice_pieces

__all__ = ["finish_splits", "split_table"]

_SEQUENCES: Final = frozenset({"SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceEmpty"})


def split_table() -> dict[Any, Any]:
    """torch op -> translation, for the splits that yield a list of tensors."""
    aten = torch.ops.aten
    return {
        aten.split.Tensor: translate_split,
        aten.split_with_sizes.default: translate_split_with_sizes,
    }


def translate_split(self: ir.Value, split_size: Any, dim: int = 0) -> Any:
    """Emit ``aten.split.Tensor``: pieces of ``split_size``, the last one smaller."""
    whole = self.shape[dim]
    if not isinstance(whole, int) or not isinstance(split_size, int) or whole == 0:
        return op.SplitToSequence(self, split_size, axis=dim)
    sizes = [min(split_size, whole - start) for start in range(0, whole, split_size)]
    return translate_split_with_sizes(self, sizes, dim)


def translate_split_with_sizes(self: ir.Value, split_sizes: Sequence[Any], dim: int = 0) -> Any:
    """Emit ``aten.split_with_sizes``: one piece for each size."""
    if not all(isinstance(size, int) for size in split_sizes):
        return op.SplitToSequence(self, split_sizes, axis=dim)
    if len(split_sizes) == 1:
        return [op.Identity(self)]
    sizes = op.Constant(value_ints=list(split_sizes))
    return list(op.Split(self, sizes, axis=dim, num_outputs=len(split_sizes)))


def finish_splits(model: ir.Model) -> None:
    """Put right what the recorder could not say, in place.

    ``Split`` was given ``num_outputs`` beside the sizes only to be told how many outputs it has, and ONNX allows
    one of the two; results that are sequences were typed as tensors, or need not be sequences.
    """
    for node in list(model.graph.all_nodes()):
        if node.op_type == "Split" and len(node.inputs) > 1 and node.inputs[1] is not None:
            node.attributes.pop("num_outputs", None)
        elif node.op_type in _SEQUENCES and node.domain == "" and not slice_pieces(node):
            _type_as_sequence(node.outputs[0], node)


def _type_as_sequence(output: ir.Value, node: ir.Node) -> None:
    if isinstance(output.type, ir.SequenceType):
        return
    source = next((value for value in node.inputs if value is not None), None)
    dtype = output.dtype or (source.dtype if source is not None else None)
    output.shape = None
    output.type = ir.SequenceType(ir.TensorType(dtype)) if dtype is not None else None
