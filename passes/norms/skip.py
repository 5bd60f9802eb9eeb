"""What the skip rules share: a residual sum, with or without a bias, and the norm that reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..graph import Builder, attribute, dims, producer
from ..look import no_match, past_identity, require, same_dims, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule
from ..symbols import same_dim

__all__ = ["SkipFacts", "SkipNorm"]


@dataclass(frozen=True, slots=True)
class _Sum:
    """``x + skip + bias`` as the fused operator takes it."""

    x: ir.Value
    skip: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True, slots=True)
class SkipFacts:
    """A norm of a sum: the summands in the operator's order, the norm's parameters, and what is read after."""

    total: ir.Value
    parts: _Sum
    gamma: ir.Value
    beta: ir.Value | None
    epsilon: float
    output: ir.Value
    keep_sum: bool
    dtype: ir.DataType


class SkipNorm(Rule):
    """Examines and builds; a subclass names the operator and orders its inputs."""

    op: ClassVar[str]

    def examine(self, node: ir.Node, context: Context) -> SkipFacts:
        """See the class."""
        if context.target.portable:
            raise no_match("no standard operator does this")
        total = None if node.inputs[0] is None else past_identity(node.inputs[0])
        add = producer(total, "Add")
        gamma = node.inputs[1]
        if add is None or total is None or gamma is None or total.dtype is None or not _active(node):
            raise no_match()
        shape = dims(total)
        if shape is None or attribute(node, "axis", -1) not in (-1, len(shape) - 1):
            raise Declined("axis", "the norm must run over the last axis of a known rank", at=node)
        if len(shape) != 3:
            raise Declined("rank", f"the fused operator takes rank 3, found rank {len(shape)}", at=node)
        dtype = require(total.dtype, self.op, context.target, node)
        beta = node.inputs[2] if len(node.inputs) > 2 else None
        for row in (gamma, beta):
            if row is not None and (row.dtype != dtype or dims(row) is None or len(dims(row) or ()) != 1):
                raise Declined("weight-shape", "weight and bias must be vectors of the element type", at=node)
        parts = _parts(add, total)
        readers = [u.node for u in total.uses()]
        keep = total.is_graph_output() or any(n is not node for n in readers)
        epsilon = float(attribute(node, "epsilon", 1e-5))
        return SkipFacts(total, parts, gamma, beta, epsilon, node.outputs[0], keep, dtype)

    def build(self, facts: SkipFacts, g: Builder) -> Replacement:
        """See the class."""
        made: Any = g.op(
            f"com.microsoft::{self.op}",
            *self.inputs_of(facts),
            outputs=4 if facts.keep_sum else 1,
            epsilon=facts.epsilon,
            dtype=facts.dtype,
            shape=facts.total.shape,
        )
        if not facts.keep_sum:
            return Replacement(old=[facts.output], new=[made])
        normed, mean, deviation, total = made
        mean.name = deviation.name = ""
        total.dtype, total.shape = facts.dtype, facts.total.shape
        return Replacement(old=[facts.output, facts.total], new=[normed, total])

    def inputs_of(self, facts: SkipFacts) -> tuple[ir.Value | None, ...]:
        """The operator's inputs in its order."""
        raise NotImplementedError


def _active(node: ir.Node) -> bool:
    """Whether only the first output of a norm is read: the fused operator has no equal of the others."""
    return not any(o.uses() or o.is_graph_output() for o in node.outputs[1:])


def _parts(add: ir.Node, total: ir.Value) -> _Sum:
    """Order the operands as the operator wants them.

    Raises:
        Declined: "broadcast" when the shapes are not provably those it accepts, "no-match" for a bias alone.
    """
    left, right = add.inputs
    assert left is not None and right is not None
    if any(len(dims(v) or (0, 0)) == 1 for v in (left, right)):
        raise no_match("a bias, no residual")
    for side, other in ((left, right), (right, left)):
        if not same_dims(side, total):
            continue
        inner = _biased(side, add, total)
        if inner is not None and _accepts(other, total):
            return _Sum(inner[0], other, inner[1])
        inner = _biased(other, add, total) if same_dims(other, total) else None
        if inner is not None:
            return _Sum(inner[0], side, inner[1])
        if _accepts(other, total):
            return _Sum(side, other, None)
    raise Declined("broadcast", f"shapes {left.shape} and {right.shape} are not provably a residual pair", at=add)


def _biased(value: ir.Value, reader: ir.Node, total: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(x, bias) when the value is x + bias with a constant vector, for this reader alone."""
    add = producer(value, "Add")
    if add is None or not unused_elsewhere(value, reader):
        return None
    for x, bias in (tuple(add.inputs), tuple(add.inputs)[::-1]):
        if x is None or bias is None or bias.const_value is None or bias.shape is None or len(bias.shape) != 1:
            continue
        assert total.shape is not None
        if same_dims(x, total) and same_dim(bias.shape[0], total.shape[-1]) and bias.dtype == total.dtype:
            return x, bias
    return None


def _accepts(skip: ir.Value, total: ir.Value) -> bool:
    """Whether the operator takes this as its skip: (B, S, H), (1, S, H) or (S, H)."""
    if same_dims(skip, total):
        return True
    shape, full = skip.shape, total.shape
    if shape is None or full is None or len(shape) not in (2, 3):
        return False
    if len(shape) == 3 and shape[0] != 1:
        return False
    return all(same_dim(a, b) for a, b in zip(list(shape)[-2:], list(full)[-2:], strict=True))
