"""The part that layer and root-mean-square norms share: something over the square root of its mean square."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import op_name, scalar
from ..look import consumers, no_match, past_identity, plus_scalar
from ..rule import Declined

__all__ = ["inverse_root_products", "other_operand"]


def inverse_root_products(mean: ir.Node, x: ir.Value) -> tuple[ir.Value, float]:
    """Find x / sqrt(mean + epsilon) downwards from the mean of the squares.

    Returns:
        The quotient and epsilon.

    Raises:
        Declined: "epsilon-outside-root" for x / (sqrt(mean) + epsilon), "no-match" for anything else.
    """
    for reader in consumers(mean.outputs[0]):
        if op_name(reader) == "Sqrt" and any(op_name(n) == "Add" for n in consumers(reader.outputs[0])):
            raise Declined("epsilon-outside-root", "epsilon is added after the square root", at=reader)
        found = plus_scalar(reader.outputs[0])
        quotients = [] if found is None else _quotients(reader.outputs[0], x)
        if found is not None and quotients:
            return quotients[0], found[1]
    raise no_match()


def _quotients(radicand: ir.Value, x: ir.Value) -> list[ir.Value]:
    """Values that are x times radicand ** -0.5."""
    found: list[ir.Value] = []
    for node in consumers(radicand):
        if op_name(node) == "Pow" and scalar(node.inputs[1]) == -0.5:
            found += _products(node.outputs[0], x)
        if op_name(node) == "Pow" and scalar(node.inputs[1]) == 0.5:
            found += _over_root(node.outputs[0], x)
        if op_name(node) == "Sqrt":
            found += _over_root(node.outputs[0], x)
    return found


def _over_root(root: ir.Value, x: ir.Value) -> list[ir.Value]:
    found: list[ir.Value] = []
    for reader in consumers(root):
        if op_name(reader) == "Reciprocal" or (op_name(reader) == "Div" and scalar(reader.inputs[0]) == 1):
            found += _products(reader.outputs[0], x)
        elif op_name(reader) == "Div" and reader.inputs[0] is not None and past_identity(reader.inputs[0]) is x:
            found.append(reader.outputs[0])
    return found


def _products(inverse: ir.Value, x: ir.Value) -> list[ir.Value]:
    readers = [n for n in consumers(inverse) if op_name(n) == "Mul"]
    return [n.outputs[0] for n in readers if any(v is not None and past_identity(v) is x for v in n.inputs)]


def other_operand(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """The operand of a two-operand node that is not ``value``; None when both are."""
    left, right = node.inputs
    if left is None or right is None:
        return None
    if past_identity(left) is value:
        return None if past_identity(right) is value else right
    return left
