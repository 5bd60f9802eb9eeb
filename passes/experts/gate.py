"""What stands between the two products of an expert: biases, the halves of a gate, bounds, the activation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from ...custom_ops.mixture_of_experts import Attributes
from ...custom_ops.mixture_of_experts.op import Activation
from ..graph import attribute, op_name, producer, scalar
from ..look import past_casts, plus_scalar, square_of, times_scalar
from .look import columns

__all__ = ["Between", "Part", "Source", "between"]


@dataclass(frozen=True, slots=True)
class Source:
    """A first product.

    Attributes:
        rows: What it multiplies, one row a token and slot.
        weight: (E, H, F), or (E, F, H) with ``transposed``; of one expert alone without the first axis.
        transposed: Which of the two.
        bias: (E, F), or (F,) of one expert, or None.
    """

    rows: ir.Value
    weight: ir.Value
    transposed: bool
    bias: ir.Value | None


@dataclass(frozen=True, slots=True)
class Part:
    """Columns of a first product."""

    source: Source
    columns: np.ndarray

    @property
    def whole(self) -> bool:
        """Whether these are all of them, in order."""
        shape = self.source.weight.shape
        size = None if shape is None else shape[-2 if self.source.transposed else -1]
        return size == len(self.columns) and np.array_equal(self.columns, np.arange(len(self.columns)))


@dataclass(frozen=True, slots=True)
class Between:
    """``activation(gate)``, or ``activation(gate) * (value + offset)`` with both within the limit."""

    activation: Activation
    attributes: Attributes
    gate: Part
    value: Part | None


#: Finds the first product that a value is, its bias included.
Find = Callable[[ir.Value], Source | None]


def between(value: ir.Value, find: Find) -> Between | None:
    """Read what the second product multiplies; None when it is nothing that an expert of the operator computes."""
    value = past_casts(value)
    alone = _activated(value)
    if alone is not None:
        part = _part(alone.x, find)
        if part is not None:
            return Between(alone.activation, Attributes(alpha=alone.alpha), part, None)
    node = producer(value, "Mul")
    if node is None or node.inputs[0] is None or node.inputs[1] is None:
        return None
    for gate, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        assert gate is not None and other is not None
        found = _gated(gate, other, find)
        if found is not None:
            return found
    return None


def _gated(gate: ir.Value, other: ir.Value, find: Find) -> Between | None:
    made = _activated(past_casts(gate))
    if made is None:
        return None
    x, low, high = _bounds(made.x)
    moved = plus_scalar(past_casts(other)) or (other, 0.0)
    value, lowest, highest = _bounds(moved[0])
    limit = high
    if low != -math.inf or limit < 0 or (lowest, highest) != (-limit, limit):
        return None
    parts = _part(x, find), _part(value, find)
    if parts[0] is None or parts[1] is None or len(parts[0].columns) != len(parts[1].columns):
        return None
    if parts[0].source.rows is not parts[1].source.rows:
        return None
    return Between(made.activation, Attributes(alpha=made.alpha, limit=limit, offset=moved[1]), *parts)


@dataclass(frozen=True, slots=True)
class _Activated:
    x: ir.Value
    activation: Activation
    alpha: float = 1.0


def _activated(value: ir.Value) -> _Activated | None:
    """Read an activation: one node, or silu as a product."""
    squared = square_of(value)
    node = producer(value) if squared is None else producer(past_casts(squared), "Relu")
    x = None if node is None or not node.inputs or node.inputs[0] is None else past_casts(node.inputs[0])
    if node is None or x is None:
        return None
    if squared is not None:
        return _Activated(x, "relu_squared")
    name = op_name(node)
    if name in ("com.microsoft::QuickGelu", "Swish"):
        return _silu(x, float(attribute(node, "alpha", _ALPHA[name])))
    if name == "Mul":
        return _sigmoid_times(node)
    if name == "Gelu":
        return _Activated(x, "gelu_tanh" if attribute(node, "approximate", "none") == "tanh" else "gelu")
    if name in _NAMED and sum(v is not None for v in node.inputs) == 1:
        return _Activated(x, _NAMED[name])
    return None


_ALPHA: Final = {"com.microsoft::QuickGelu": 1.702, "Swish": 1.0}
_NAMED: Final[dict[str, Activation]] = {
    "Relu": "relu",
    "com.microsoft::Gelu": "gelu",
    "com.microsoft::FastGelu": "gelu_tanh",
}


def _sigmoid_times(node: ir.Node) -> _Activated | None:
    """x * sigmoid(alpha * x)."""
    for x, other in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        sigmoid = None if other is None else producer(past_casts(other), "Sigmoid")
        if x is None or sigmoid is None or sigmoid.inputs[0] is None:
            continue
        inner = past_casts(sigmoid.inputs[0])
        scaled = times_scalar(inner)
        if past_casts(x) is inner:
            return _silu(past_casts(x), 1.0)
        if scaled is not None and past_casts(scaled[0]) is past_casts(x):
            return _silu(past_casts(x), scaled[1])
    return None


def _silu(x: ir.Value, alpha: float) -> _Activated | None:
    return _Activated(x, "silu", alpha) if math.isfinite(alpha) and alpha >= 0 else None


def _bounds(value: ir.Value) -> tuple[ir.Value, float, float]:
    """(x, low, high) when the value is x within bounds; infinite ones where there are none."""
    low, high = -math.inf, math.inf
    while True:
        value = past_casts(value)
        node = producer(value, "Clip", "Min", "Max")
        found = None if node is None else _bounded(node)
        if found is None:
            return value, low, high
        value, low, high = found[0], max(low, found[1]), min(high, found[2])


def _bounded(node: ir.Node) -> tuple[ir.Value, float, float] | None:
    first = node.inputs[0]
    if node.op_type == "Clip":
        low, high = ([*node.inputs[1:], None, None])[:2]
        numbers = [(None if v is None else scalar(v)) for v in (low, high)]
        known = all(v is None or n is not None for v, n in zip((low, high), numbers, strict=True))
        if first is None or not known:
            return None
        return first, *(
            float(n) if n is not None else sign * math.inf for n, sign in zip(numbers, (-1, 1), strict=True)
        )
    if len(node.inputs) != 2:
        return None
    for x, bound in (tuple(node.inputs), tuple(node.inputs)[::-1]):
        number = scalar(bound)
        if x is not None and number is not None:
            return (x, -math.inf, float(number)) if node.op_type == "Min" else (x, float(number), math.inf)
    return None


def _part(value: ir.Value, find: Find) -> Part | None:
    found = columns(value)
    source = None if found is None else find(found[0])
    return None if source is None or found is None else Part(source, found[1])
