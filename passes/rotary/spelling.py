"""The two ways rotary embedding is written: one sum over the whole, or two over its halves."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..graph import producer
from ..look import past_identity
from .halves import Kind
from .rotation import Part, part_of, rotation_of

__all__ = ["Spelling", "halves_spelling", "sum_spelling"]


@dataclass(frozen=True, slots=True)
class Spelling:
    """What the graph says before anything is checked; ``doubled`` tables are as wide as x, others half as wide."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value
    kind: Kind
    output: ir.Value
    doubled: bool


def sum_spelling(node: ir.Node) -> Spelling | None:
    """x * cos + turned(x) * sin."""
    products = [producer(v, "Mul") for v in node.inputs]
    if products[0] is None or products[1] is None:
        return None
    for straight, turned in ((products[0], products[1]), (products[1], products[0])):
        for rotated, sin in (tuple(turned.inputs), tuple(turned.inputs)[::-1]):
            found = None if rotated is None else rotation_of(rotated)
            cos = None if found is None else _other(straight, found[0])
            if found is not None and cos is not None and sin is not None:
                return Spelling(found[0], cos, sin, found[1], node.outputs[0], True)
    return None


def halves_spelling(node: ir.Node) -> Spelling | None:
    """concat(a * cos - b * sin, b * cos + a * sin) of the two halves a and b of x."""
    if len(node.inputs) != 2:
        return None
    minus, plus = producer(node.inputs[0], "Sub"), producer(node.inputs[1], "Add")
    if minus is None or plus is None:
        return None
    left, right = (producer(v, "Mul") for v in minus.inputs)
    if left is None or right is None:
        return None
    for a, cos in (tuple(left.inputs), tuple(left.inputs)[::-1]):
        for b, sin in (tuple(right.inputs), tuple(right.inputs)[::-1]):
            source = _source_of_halves(part_of(a), part_of(b))
            if source is None or cos is None or sin is None or a is None or b is None:
                continue
            wanted = [{id(b), id(cos)}, {id(a), id(sin)}]
            products = [producer(v, "Mul") for v in plus.inputs]
            operands = [set() if p is None else {id(v) for v in p.inputs} for p in products]
            if operands in (wanted, wanted[::-1]) and _same_shape(source, node.outputs[0]):
                return Spelling(source, cos, sin, "half", node.outputs[0], False)
    return None


def _same_shape(x: ir.Value, output: ir.Value) -> bool:
    return x.shape is not None and output.shape is not None and len(x.shape) == len(output.shape)


def _source_of_halves(first: Part | None, second: Part | None) -> ir.Value | None:
    if first is None or second is None or first.source is not second.source or first.source.shape is None:
        return None
    width = first.source.shape[-1]
    spans = (first.start, first.stop, second.start, second.stop)
    fits = isinstance(width, int) and spans == (0, width // 2, width // 2, width) and first.step == second.step == 1
    return first.source if fits else None


def _other(product: ir.Node, x: ir.Value) -> ir.Value | None:
    left, right = product.inputs
    if left is not None and past_identity(left) is x:
        return right
    return left if right is not None and past_identity(right) is x else None
