"""Walking down from a softmax to the product with the value."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from ..graph import attribute, dims, op_name, producer, scalar
from ..masks.poly import ONE, parse_size
from ..rule import Declined
from .empty_rows import asks_for_empty_rows
from .scores import View, filling

__all__ = ["Downward", "attends", "comes_from_softmax", "guards_rows", "read_elsewhere", "walk_down"]


@dataclass(frozen=True, slots=True)
class Downward:
    """The way from the softmax to the product with the value.

    Attributes:
        node: The MatMul with the value.
        guarded: Whether NaN rows are replaced by 0 on the way.
        probabilities: The value the MatMul reads.
        views: Reshapes on the way, softmax first.
        sliced: Which column is left out on the way: "last", "first", or "" for none.
        kept: The weights without that column; those of the softmax where none is left out.
        blanked: Conditions under which weights are set to 0 on the way, each with whether it is the one that keeps.
    """

    node: ir.Node
    guarded: bool
    probabilities: ir.Value
    views: tuple[View, ...]
    sliced: str
    kept: ir.Value
    blanked: tuple[tuple[ir.Value, bool], ...] = ()


def attends(softmax: ir.Node) -> bool:
    """Whether a softmax over the last axis is multiplied, as weights, with something computed."""
    rank = len(dims(softmax.outputs[0]) or ()) or 4
    if attribute(softmax, "axis", -1) not in (-1, rank - 1) or rank < 2:
        return False
    try:
        walk_down(softmax)
    except Declined as no:
        return no.reason == "weights-changed"
    return True


def walk_down(softmax: ir.Node) -> Downward:
    """The way from a softmax to the product with the value.

    Raises:
        Declined: "no-match" when the weights lead to no such product.
    """
    value, guarded, sliced = softmax.outputs[0], False, ""
    kept = value
    views: list[View] = []
    blanked: list[tuple[ir.Value, bool]] = []
    for _ in range(12):
        step = _next(value)
        if step is None:
            raise Declined("no-match", "the softmax is no attention")
        node, is_guard = step
        if op_name(node) == "MatMul":
            if node.inputs[0] is not value or _is_weight(node.inputs[1]):
                raise Declined("no-match", "the softmax is no attention")
            return Downward(node, guarded, value, tuple(views), sliced, kept, tuple(blanked))
        guarded = guarded or is_guard
        if node.op_type == "Slice" and not sliced:
            sliced, kept = _dropped(node), node.outputs[0]
        if node.op_type == "Where" and not is_guard:
            blanked.append(_blank(node, value))
        if node.op_type in ("Reshape", "Unsqueeze", "Squeeze"):
            views.append(View(value, node.outputs[0]))
        value = node.outputs[0]
    raise Declined("no-match", "the softmax is no attention")


def _next(value: ir.Value) -> tuple[ir.Node, bool] | None:
    """The node that carries the weights on, and whether it is a NaN guard."""
    users = {id(u.node): u.node for u in value.uses()}.values()
    guards = [n for n in users if op_name(n) == "Where" and guards_rows(n, value)]
    if guards:
        return guards[0], True
    for node in users:
        if op_name(node) == "MatMul":
            return node, False
    for node in users:
        if op_name(node) in ("Cast", "CastLike", "Identity", "Dropout", "Reshape", "Unsqueeze", "Squeeze"):
            return node, False
        if op_name(node) == "Slice" and _dropped(node):
            return node, False
        if op_name(node) == "Where" and filling(node.inputs[1 if node.inputs[2] is value else 2]) == 0:
            return node, False
    return None


def _blank(where: ir.Node, value: ir.Value) -> tuple[ir.Value, bool]:
    condition = where.inputs[0]
    assert condition is not None
    return condition, where.inputs[1] is value


def _dropped(node: ir.Node) -> str:
    """Which end column a Slice leaves out, the weight that went to the sink: "last", "first", or "" for neither."""
    if len(node.inputs) < 4:
        return ""
    start, end, axis = (scalar(v) for v in node.inputs[1:4])
    rank = len(dims(node.outputs[0]) or ())
    if axis not in (-1, rank - 1) or (len(node.inputs) > 4 and scalar(node.inputs[4]) != 1):
        return ""
    whole, left = (parse_size(shape[-1]) if (shape := dims(v)) else None for v in (node.inputs[0], node.outputs[0]))
    one_less = whole is not None and left is not None and whole - left == ONE  # as [..., :T] and narrow say it
    if start == 0 and (end == -1 or one_less):
        return "last"
    return "first" if start == 1 and (one_less or (end is not None and end >= 1 << 30)) else ""


def guards_rows(where: ir.Node, value: ir.Value) -> bool:
    """Whether a Where sets weights to 0 that are NaN, or the rows whose scores are all minus infinity."""
    if where.inputs[2] is not value or filling(where.inputs[1]) != 0:
        return False
    test = producer(where.inputs[0], "IsNaN")
    if test is not None:
        return test.inputs[0] is value
    softmax = producer(value, "Softmax")
    return softmax is not None and asks_for_empty_rows(where.inputs[0], softmax.inputs[0])


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def read_elsewhere(down: Downward) -> bool:
    """Whether the attention weights have a reader besides the value product (guards and casts on the way aside)."""
    value = down.kept
    while True:
        if value.is_graph_output():
            return True
        users = {id(u.node): u.node for u in value.uses()}
        step = _next(value)
        assert step is not None
        node, guard = step
        aside = ("IsNaN", "Shape") if guard else ("Shape",)
        others = [n for n in users.values() if n is not node and op_name(n) not in aside]
        if others:
            return True
        if node is down.node:
            return False
        value = node.outputs[0]


def comes_from_softmax(value: ir.Value | None, through: Collection[str], steps: int = 8) -> bool:
    """Whether a value is a softmax's, handed on by the operators of ``through`` (a guard's Where by its last input)."""
    for _ in range(steps):
        node = None if value is None else value.producer()
        if node is None or op_name(node) == "Softmax":
            return node is not None
        if op_name(node) not in through:
            return False
        value = node.inputs[2] if op_name(node) == "Where" else node.inputs[0]
    return False
