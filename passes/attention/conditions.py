"""Conditions as what they are made of, so that two ways to write one mask are seen to be the same."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

import onnx_ir as ir

from ..graph import constant, op_name, producer

__all__ = ["Literal", "literals"]

#: A condition that is no Not, And or Or, by how it is computed, and whether it must hold or must not.
Literal = tuple[Hashable, bool]

#: How far up two computations are compared.
_DEPTH: Final = 12
#: Largest constant that is compared by its elements.
_SMALL: Final = 1 << 12
_RANDOM: Final = ("Random", "Bernoulli", "Multinomial", "Dropout")
#: Attributes that say the same where their values are the same.
_PLAIN: Final = frozenset(ir.AttributeType[kind] for kind in ("INT", "FLOAT", "STRING", "INTS", "FLOATS", "STRINGS"))


def literals(condition: ir.Value, holds: bool) -> frozenset[Literal]:
    """The literals whose conjunction says that a boolean condition holds, or that it does not.

    Args:
        condition: A boolean tensor.
        holds: Whether the conjunction is of the condition or of its negation. ``a and b`` that holds is two literals,
            as is ``a or b`` that does not; any other condition is one.
    """
    node = producer(condition, "Not", "And", "Or")
    if node is not None and op_name(node) == "Not" and node.inputs[0] is not None:
        return literals(node.inputs[0], not holds)
    if node is not None and op_name(node) == ("And" if holds else "Or"):
        return frozenset().union(*(literals(v, holds) for v in node.inputs if v is not None))
    return frozenset({(_computed(condition, _DEPTH), holds)})


def _computed(value: ir.Value | None, depth: int) -> Hashable:
    """How a value is computed; equal for two values only if they are equal. Beyond the depth a value is itself."""
    if value is None:
        return None
    node = value.producer()
    if node is None or op_name(node) == "Constant":
        array = constant(value, limit=_SMALL)
        return id(value) if array is None else (array.dtype.name, array.shape, array.tobytes())
    plain = all(a.type in _PLAIN for a in node.attributes.values()) and not op_name(node).startswith(_RANDOM)
    if not depth or not plain or not node.inputs:
        return id(value)
    said = tuple(sorted((name, repr(a.value)) for name, a in node.attributes.items()))
    place = next(n for n, output in enumerate(node.outputs) if output is value)
    return op_name(node), place, said, tuple(_computed(v, depth - 1) for v in node.inputs)
