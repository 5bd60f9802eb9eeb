"""Constant targets for Reshape and Expand, solved from shapes that are known, and other shared layout vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from ..graph import Builder, op_name
from ..look import same_dims
from ..rule import Declined, Replacement
from ..symbols import dim_text, same_dim

__all__ = ["SHAPE_ONLY", "emit_reshape", "expand_target", "pass_through", "reshape_target", "shape_text"]

#: Operators that change the shape alone: the elements keep their order.
SHAPE_ONLY: Final = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten"})


def reshape_target(source: Sequence[Any] | None, wanted: Sequence[Any] | None) -> list[int] | None:
    """A constant shape input for Reshape (allowzero 0) that turns one shape into another.

    A size is a number, 0 (copied from the same axis) or, once, -1. None when that does not suffice.
    """
    if source is None or wanted is None:
        return None
    target: list[int] = []
    for axis, dim in enumerate(wanted):
        if isinstance(dim, int):
            target.append(dim)
        elif axis < len(source) and same_dim(source[axis], dim):
            target.append(0)
        else:
            target.append(-1)
    literal_zero = any(isinstance(d, int) and d == 0 for d in wanted)
    return None if target.count(-1) > 1 or literal_zero else target


def expand_target(source: Sequence[Any] | None, wanted: Sequence[Any] | None) -> list[int] | None:
    """A constant shape input for Expand that turns one shape into another; None when an axis is not known."""
    if source is None or wanted is None or len(source) > len(wanted):
        return None
    padded = [1] * (len(wanted) - len(source)) + list(source)
    target: list[int] = []
    for here, there in zip(padded, wanted, strict=True):
        if same_dim(here, there):
            target.append(1)
        elif isinstance(there, int):
            target.append(there)
        else:
            return None
    return target


def emit_reshape(g: Builder, source: ir.Value, like: ir.Value, target: Sequence[int]) -> ir.Value:
    """Reshape ``source`` to a constant target; type and shape are those of ``like``."""
    shape = g.const(np.array(target, np.int64))
    return g.op("Reshape", source, shape, dtype=source.dtype, shape=like.shape)


def pass_through(old: ir.Value, new: ir.Value) -> Replacement:
    """Let the readers of ``old`` read ``new``, which exists already.

    Raises:
        Declined: "graph-output" when ``old`` is an output and ``new`` cannot take its name.
    """
    if old.is_graph_output() and (new.producer() is None or new.is_graph_output()):
        raise Declined("graph-output", "an output of the graph must stay a node of its own", at=old)
    return Replacement(old=[old], new=[new])


def shape_text(value: ir.Value) -> str:
    """A shape for a message."""
    return "of unknown rank" if value.shape is None else "(" + ", ".join(dim_text(d) for d in value.shape) + ")"


def keeps_shape(node: ir.Node) -> bool:
    """Whether a node's first input and output provably have the same shape."""
    return node.inputs[0] is not None and same_dims(node.inputs[0], node.outputs[0])


def is_shape_only(node: ir.Node | None) -> bool:
    """Whether a node changes the shape alone."""
    return node is not None and op_name(node) in SHAPE_ONLY
