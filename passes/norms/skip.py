"""What the skip rules share: a residual sum, with or without a bias, and the norm that reads it.

Which of the rules applies on a target is the table of :mod:`passes.residual`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import onnx_ir as ir

from ..graph import Builder, attribute, dims, producer
from ..look import no_match, past_identity, require, same_dims, unused_elsewhere
from ..residual import Form, forms
from ..rule import Context, Declined, Replacement, Rule
from ..symbols import same_dim

__all__ = ["SkipFacts", "SkipNorm", "Summands"]


@dataclass(frozen=True, slots=True)
class Summands:
    """``x + skip + bias`` as the fused operator takes it."""

    x: ir.Value
    skip: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True, slots=True)
class SkipFacts:
    """A norm of a sum: the summands in the operator's order, the norm's parameters, and what is read after."""

    norm: str
    total: ir.Value
    parts: Summands
    gamma: ir.Value
    beta: ir.Value | None
    epsilon: float
    output: ir.Value
    keep_sum: bool
    dtype: ir.DataType


class SkipNorm(Rule):
    """Examines and builds; a subclass names the form it writes, and for onnxruntime's the operator and its inputs."""

    op: ClassVar[str]
    form: ClassVar[Form] = "fused"
    sums: ClassVar[tuple[str, ...]] = ("Add", "Sum")

    def examine(self, node: ir.Node, context: Context) -> SkipFacts:
        """See the class."""
        if context.target.portable:
            raise no_match("no standard operator does this")
        total = None if node.inputs[0] is None else past_identity(node.inputs[0])
        add = producer(total, *self.sums)
        gamma = node.inputs[1]
        if add is None or total is None or gamma is None or total.dtype is None or not _active(node):
            raise no_match()
        shape = dims(total)
        if shape is None or attribute(node, "axis", -1) not in (-1, len(shape) - 1):
            raise Declined("axis", "the norm must run over the last axis of a known rank", at=node)
        parts = self._summands(add, total, node, context)
        self.require_form(node, context)
        if self.form == "fused" and len(shape) != 3:
            raise Declined("rank", f"the fused operator takes rank 3, found rank {len(shape)}", at=node)
        dtype = self.require_dtype(total.dtype, context, node)
        beta = node.inputs[2] if len(node.inputs) > 2 else None
        for row in (gamma, beta):
            if row is not None and (row.dtype != dtype or not _is_row(row, total)):
                raise Declined("weight-shape", "weight and bias must be vectors of the element type", at=node)
        readers = [u.node for u in total.uses()]
        keep = total.is_graph_output() or any(n is not node for n in readers)
        epsilon = float(attribute(node, "epsilon", 1e-5))
        return SkipFacts(node.op_type, total, parts, gamma, beta, epsilon, node.outputs[0], keep, dtype)

    def _summands(self, add: ir.Node, total: ir.Value, node: ir.Node, context: Context) -> Summands:
        """The operands in order; what is wrong with them is said by one rule, not by each form's."""
        found = forms(node.op_type, context.target)
        try:
            return _parts(add, total, own=self.form == "own")
        except Declined:
            if self.form not in found or (self.form == "sum" and "own" in found):
                raise no_match("another form's rule says why") from None
            raise

    def require_form(self, node: ir.Node, context: Context) -> None:
        """Hold the rule against the table of forms.

        Raises:
            Declined: "slower" where another form is as fast or faster.
        """
        if self.form in forms(node.op_type, context.target):
            return
        version = ".".join(map(str, context.target.onnxruntime))
        where = f"{context.target.name} with onnxruntime {version}"
        raise Declined("slower", f"{self.op} is not the fastest form of {node.op_type} on {where}", at=node)

    def require_dtype(self, dtype: ir.DataType, context: Context, node: ir.Node) -> ir.DataType:
        """The element type, when the operator runs with it."""
        return require(dtype, self.op, context.target, node)

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


def _is_row(row: ir.Value, total: ir.Value) -> bool:
    assert total.shape is not None
    return row.shape is not None and len(row.shape) == 1 and same_dim(row.shape[0], total.shape[-1])


def _parts(add: ir.Node, total: ir.Value, *, own: bool) -> Summands:
    """Order the operands as the operator wants them.

    Raises:
        Declined: "broadcast" when the shapes are not provably those it accepts, "no-match" for a bias alone.
    """
    operands = [v for v in add.inputs if v is not None]
    if len(operands) == 3:
        return _three(operands, total, own=own)
    if len(operands) != 2 or any(len(dims(v) or (0, 0)) == 1 for v in operands):
        raise no_match("a bias, no residual")
    left, right = operands
    for side, other in ((left, right), (right, left)):
        if not same_dims(side, total):
            continue
        inner = _biased(side, add, total)
        if inner is not None and _accepts(other, total, own=own):
            return Summands(inner[0], other, inner[1])
        inner = _biased(other, add, total) if same_dims(other, total) else None
        if inner is not None:
            return Summands(inner[0], side, inner[1])
        if _accepts(other, total, own=own):
            return Summands(side, other, None)
    raise Declined("broadcast", f"shapes {left.shape} and {right.shape} are not provably a residual pair", at=add)


def _three(operands: list[ir.Value], total: ir.Value, *, own: bool) -> Summands:
    """The operands of ``Sum(x, skip, bias)``, in any order."""
    rows = [v for v in operands if _is_row(v, total)]
    others = [v for v in operands if not any(v is r for r in rows)]
    if len(rows) == 1 and len(others) == 2:
        for x, skip in (others, others[::-1]):
            if same_dims(x, total) and _accepts(skip, total, own=own):
                return Summands(x, skip, rows[0])
    raise no_match("other sums of three")


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


def _accepts(skip: ir.Value, total: ir.Value, *, own: bool) -> bool:
    """Whether the operator takes this as its skip: (B, S, H), (1, S, H) or (S, H); the own one the last axes of any."""
    if same_dims(skip, total):
        return True
    shape, full = skip.shape, total.shape
    if shape is None or full is None or not 2 <= len(shape) <= len(full):
        return False
    last = list(shape)
    while len(last) > 2 and last[0] == 1:
        last.pop(0)
    if not own and (len(full) != 3 or len(last) != 2):
        return False
    return all(same_dim(a, b) for a, b in zip(last, list(full)[-len(last) :], strict=True))
