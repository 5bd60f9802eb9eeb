"""The canonical grouped product: one private op for rows that each meet the weight of their own group.

Captured calls become ``deployml.canonical::GroupedMatMul``. What no rule makes part of a mixture of experts is
expanded to one product per group.

Signature (version 1)::

    output = GroupedMatMul(rows, weight, ends, groups=E, transposed=0)

    rows    (S, D)     float, those of group 0 first, then those of group 1, ...
    weight  (E, D, F)  or (E, F, D) with ``transposed``
    ends    (E,)       int32 or int64, rising: the first row after those of each group
    output  (S, F)     rows[ends[e - 1] : ends[e]] @ weight[e]; 0 for rows after the last end

The second layout is that of torch's linear layers: a call that transposes its weight keeps it as it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from .graph import Builder, attribute

__all__ = ["NAME", "GroupedNode", "expand", "is_grouped", "read"]

NAME: Final = "GroupedMatMul"
_DOMAIN: Final = "deployml.canonical"


def is_grouped(node: ir.Node | None) -> bool:
    """Whether a node is the canonical grouped product."""
    return node is not None and node.domain == _DOMAIN and node.op_type == NAME


@dataclass(frozen=True, slots=True)
class GroupedNode:
    """A canonical grouped product read from its node; shapes as in the module's signature."""

    node: ir.Node
    rows: ir.Value
    weight: ir.Value
    ends: ir.Value
    groups: int
    transposed: bool

    @property
    def output(self) -> ir.Value:
        """The products, (S, F)."""
        return self.node.outputs[0]


def read(node: ir.Node) -> GroupedNode:
    """Read a canonical grouped product.

    Raises:
        ValueError: if the node is something else.
    """
    if not is_grouped(node):
        raise ValueError(f"{node.name} is {node.domain}::{node.op_type}, not a canonical grouped product")
    rows, weight, ends = node.inputs
    assert rows is not None and weight is not None and ends is not None
    return GroupedNode(node, rows, weight, ends, int(attribute(node, "groups")), bool(attribute(node, "transposed", 0)))


def expand(site: GroupedNode, g: Builder) -> tuple[ir.Value]:
    """Write a grouped product as one product per group (opset 15 or newer).

    Returns:
        The output alone.
    """
    number = _Numbers(g)
    ends = site.ends if site.ends.dtype == ir.DataType.INT64 else g.op("Cast", site.ends, to=ir.DataType.INT64)
    start, parts = number.list(0), []
    for group in range(site.groups):
        end = g.op("Slice", ends, number.list(group), number.list(group + 1), number.list(0))
        own = g.op("Slice", site.rows, start, end, number.list(0))
        weight = g.op("Gather", site.weight, number.scalar(group), axis=0)
        parts.append(g.op("Gemm", own, weight, transB=1) if site.transposed else g.op("MatMul", own, weight))
        start = end
    left = g.op("Sub", g.op("Shape", site.rows, start=0, end=1), start)
    axis = 1 if site.transposed else 2
    shape = g.op("Concat", left, g.op("Shape", site.weight, start=axis, end=axis + 1), axis=0)
    dtype = site.rows.dtype or ir.DataType.FLOAT
    parts.append(g.op("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype.numpy()), dtype=dtype)))
    output = site.output
    return (g.op("Concat", *parts, axis=0, dtype=output.dtype, shape=output.shape),)


class _Numbers:
    """Constants of one integer, each made once."""

    def __init__(self, g: Builder) -> None:
        self._g = g
        self._made: dict[tuple[int, int], ir.Value] = {}

    def scalar(self, number: int) -> ir.Value:
        return self._get(number, 0)

    def list(self, number: int) -> ir.Value:
        return self._get(number, 1)

    def _get(self, number: int, rank: int) -> ir.Value:
        key = (number, rank)
        if key not in self._made:
            self._made[key] = self._g.const(np.full((1,) * rank, number, np.int64))
        return self._made[key]
