"""Exponentials that a mask sets to zero before they are divided by their sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, constant, dims, op_name, producer
from .scores import filling

__all__ = ["Core", "core_of", "with_mask"]

#: Operators that hand a mask on in another shape.
_HANDS_ON: Final = ("Identity", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Slice")
_STEPS: Final = 6
_NEVER_NEGATIVE: Final = ("Exp", "Sigmoid", "Softmax", "Relu", "Softplus", "Abs")


@dataclass(frozen=True, slots=True)
class Core:
    """What is divided by its sum, and what it was multiplied by.

    Attributes:
        node: The Exp, or the Softmax: exponentials that were divided by another number of their row before.
        mask: What sets some to zero; None for nothing.
        kind: "keep" and "drop" for conditions, "weigh" for a factor that is any number of at least 0.
    """

    node: ir.Node
    mask: ir.Value | None = None
    kind: str = ""

    @property
    def logits(self) -> ir.Value:
        """What the exponentials are of."""
        logits = self.node.inputs[0]
        assert logits is not None
        return logits

    @property
    def bare(self) -> bool:
        """Whether exponentials stand there, and nothing else."""
        return self.node.op_type == "Exp" and self.mask is None


def core_of(value: ir.Value | None) -> Core | None:
    """The exponentials under a mask, of ``e``, ``e * m``, ``where(m, e, 0)`` or ``where(m, 0, e)``."""
    exponential = _exponential(value)
    if exponential is not None:
        return Core(exponential)
    node = producer(value, "Mul", "Where")
    if node is None:
        return None
    if node.op_type == "Mul":
        pairs = [(0, 1, "weigh"), (1, 0, "weigh")]
    else:
        pairs = [(n, 0, kind) for n, kind in ((1, "keep"), (2, "drop")) if filling(node.inputs[3 - n]) == 0]
    for place, other, kind in pairs:
        exponential, mask = _exponential(node.inputs[place]), node.inputs[other]
        if exponential is None or mask is None or not _of_one_shape(exponential, node):
            continue
        root = _root(mask)
        if kind != "weigh" or root.dtype == ir.DataType.BOOL:
            return Core(exponential, mask, "keep" if kind == "weigh" else kind)
        if _is_never_negative(root):
            return Core(exponential, mask, kind)
    return None


def with_mask(logits: ir.Value, core: Core, g: Builder) -> ir.Value:
    """The logits whose softmax has the mask in it: minus infinity where it forbids, the logarithm of a factor added."""
    mask = core.mask
    if mask is None:
        return logits
    if core.kind == "weigh":
        log = g.op("Log", mask, dtype=mask.dtype, shape=mask.shape)
        return g.op("Add", logits, log, dtype=logits.dtype, shape=logits.shape)
    if mask.dtype != ir.DataType.BOOL:
        cast = producer(mask, "Cast")
        source = None if cast is None else cast.inputs[0]
        if source is not None and source.dtype == ir.DataType.BOOL:
            mask = source
        else:
            mask = g.op("Cast", mask, to=ir.DataType.BOOL, dtype=ir.DataType.BOOL, shape=mask.shape)
    lowest = g.scalar(-np.inf, like=logits)
    arms = (logits, lowest) if core.kind == "keep" else (lowest, logits)
    return g.op("Where", mask, *arms, dtype=logits.dtype, shape=logits.shape)


def _exponential(value: ir.Value | None) -> ir.Node | None:
    node = producer(value, "Exp", "Softmax")
    if node is None or node.op_type == "Exp":
        return node
    rank = len(dims(node.outputs[0]) or ())
    return node if attribute(node, "axis", -1) in (-1, rank - 1) else None


def _of_one_shape(exponential: ir.Node, masked: ir.Node) -> bool:
    """Whether a mask makes no more of the exponentials than there were, so far as shapes tell."""
    before, after = dims(exponential.outputs[0]), dims(masked.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return False
    return not any(old == 1 != new for old, new in zip(before, after, strict=True))


def _root(mask: ir.Value) -> ir.Value:
    """What a mask is a view of, or the condition that was cast to 0 and 1."""
    value = mask
    for _ in range(_STEPS):
        node = producer(value, "Cast", *_HANDS_ON)
        if node is None or node.inputs[0] is None:
            break
        if op_name(node) == "Cast" and node.inputs[0].dtype != ir.DataType.BOOL:
            break
        value = node.inputs[0]
    return value


def _is_never_negative(value: ir.Value) -> bool:
    array = constant(value)
    if array is not None:
        return array.dtype.kind in "fiu" and bool(np.all(array >= 0))
    return producer(value, *_NEVER_NEGATIVE) is not None
