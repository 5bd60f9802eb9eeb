"""Attention whose weights are no softmax: a sigmoid, a squared ReLU or bare exponentials of the scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import onnx_ir as ir

from ..graph import dims, op_name, producer
from .between import written_logits

__all__ = ["other_weights"]

#: What is put in the place of the softmax. Gates of layers (SiLU, GELU) are left out: they make no weights.
_FUNCTIONS: Final = frozenset(
    {"Sigmoid", "Exp", "Relu", "Erf", "Softplus", "HardSigmoid", "LeakyRelu", "Elu", "Hardmax"}
)
#: Operators on the way whose floating-point inputs are the scores, or what is added to and multiplied with them.
_ON_THE_WAY: Final = frozenset(
    {*_FUNCTIONS, "Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Pow", "Max", "Min", "Clip", "Tanh"}
)
_PRODUCTS: Final = frozenset({"MatMul", "Einsum"})
#: Operators that hand a weight on, or choose among weights, as routed experts do.
_OF_A_WEIGHT: Final = ("Transpose", "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Gather")
_MOST: Final = 32


def other_weights(graph: ir.Graph, attending: Sequence[ir.Node]) -> Iterable[ir.Node]:
    """The last function of the scores, of every product of computed tensors that weighs a computed tensor by it.

    Args:
        graph: A model's graph.
        attending: Its softmaxes that are an attention's, also those written out: they are not among the functions.
    """
    written = {id(v) for n in attending if (v := written_logits(n)) is not None}
    found: dict[int, ir.Node] = {}
    for node in graph.all_nodes():
        if op_name(node) not in _PRODUCTS or len(node.inputs) != 2 or not _computed(node):
            continue
        for operand in node.inputs:
            function = None if operand is None else _function_of_scores(operand)
            if function is not None and id(function.inputs[0]) not in written:
                found[id(function)] = function
    return found.values()


def _function_of_scores(value: ir.Value) -> ir.Node | None:
    """The function nearest to a value on its way up to a product of computed tensors; None where there is none."""
    queue: list[tuple[ir.Value, ir.Node | None]] = [(value, None)]
    seen: set[int] = set()
    while queue and len(seen) < _MOST:
        here, function = queue.pop(0)
        node = here.producer()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if op_name(node) in _PRODUCTS:
            if function is not None and len(node.inputs) == 2 and _computed(node) and len(dims(here) or ()) > 2:
                return function
            continue
        if op_name(node) not in _ON_THE_WAY:
            continue
        function = function or (node if node.op_type in _FUNCTIONS else None)
        above = node.inputs[:1] if node.op_type in ("Pow", "Clip") else node.inputs
        queue += [(v, function) for v in above if v is not None and _floating(v)]
    return None


def _floating(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _computed(node: ir.Node) -> bool:
    """Whether both operands of a product depend on the input, and none is a weight or a choice of weights."""
    return all(v is not None and not _weight(v) for v in node.inputs)


def _weight(value: ir.Value) -> bool:
    for _ in range(_MOST):
        if value.const_value is not None and not value.is_graph_input():
            return True
        node = producer(value, *_OF_A_WEIGHT)
        if node is None or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False
