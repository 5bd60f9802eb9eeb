"""Convolutions over three axes: a missing bias is left out.

torch's ONNX translation puts a bias of zeros there, of shape (channels, 2), which onnxruntime refuses when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

__all__ = ["convolution_table"]

_AXES = 3


def convolution_table() -> dict[Any, Any]:
    """torch op -> translation, for convolutions."""
    return {torch.ops.aten.conv3d.default: translate_conv3d}


def translate_conv3d(
    input: ir.Value,
    weight: ir.Value,
    bias: ir.Value | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Any:
    """Emit ``aten.conv3d`` of (B, C, D, H, W), or of (C, D, H, W)."""
    operands = [weight] if bias is None else [weight, bias]
    single = len(input.shape) == _AXES + 1
    axis = op.Constant(value_ints=[0])
    result = op.Conv(
        op.Unsqueeze(input, axis) if single else input,
        *operands,
        strides=_each(stride),
        pads=_each(padding) * 2,
        dilations=_each(dilation),
        group=groups,
    )
    return op.Squeeze(result, axis) if single else result


def _each(numbers: int | Sequence[int]) -> list[int]:
    """One number for each axis."""
    found = [numbers] if isinstance(numbers, int) else list(numbers)
    return found * _AXES if len(found) == 1 else found
