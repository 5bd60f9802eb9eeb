"""Softmaxes that weigh values by scores no query and no key make: additive attention, pooling by a layer's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx_ir as ir

from ..graph import op_name, scalar
from .between import is_learned

__all__ = ["layer_scored", "note_on"]

#: Operators that hand weights on, apart from what they are masked or multiplied with.
_HANDS_ON: Final = frozenset(
    "Transpose,Reshape,Unsqueeze,Squeeze,Cast,Identity,Dropout,Where,Slice,Split,Expand".split(",")  # noqa: SIM905
)
_PRODUCTS: Final = frozenset({"MatMul", "Einsum"})
_STEPS: Final = 8
#: Softmaxes named in one sentence.
_NAMED: Final = 4


def layer_scored(graph: ir.Graph, attending: Sequence[ir.Node]) -> list[ir.Node]:
    """Softmaxes that are no attention's by their outline, and weigh a computed tensor all the same.

    Routers choose by their weights, classifiers return them, and a mixture of learned numbers reads no input: none of
    these is meant.

    Args:
        graph: A model's graph.
        attending: Its softmaxes that are an attention's.
    """
    known = {id(node) for node in attending}
    return [
        node
        for node in graph.all_nodes()
        if op_name(node) == "Softmax"
        and id(node) not in known
        and node.inputs[0] is not None
        and not is_learned(node.inputs[0])
        and _weighs_values(node.outputs[0])
    ]


def note_on(nodes: list[ir.Node]) -> str | None:
    """The sentence for the report; None where there is nothing to say."""
    if not nodes:
        return None
    places = list(dict.fromkeys(n.metadata_props.get("deployml.source") or f"node '{n.name}'" for n in nodes))
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    count = "A softmax weighs" if len(nodes) == 1 else f"{len(nodes)} softmaxes weigh"
    return (
        f"{count} values by scores that are no products of queries with keys (additive attention, pooling, linear "
        f"attention), at {', '.join(places[:_NAMED])}{more}: no fused operator computes that, and plain nodes stay."
    )


def _weighs_values(weights: ir.Value) -> bool:
    ahead, seen = [weights], set[int]()
    for _ in range(_STEPS):
        uses = [(value, use.node) for value in ahead for use in value.uses()]
        if any(_weighs(node, value) for value, node in uses):
            return True
        seen.update(id(value) for value in ahead)
        ahead = [o for value, node in uses if _goes_on(node, value) for o in node.outputs if id(o) not in seen]
    return False


def _weighs(node: ir.Node, weights: ir.Value) -> bool:
    """Whether a node multiplies a computed tensor by weights and adds the products up."""
    others = [v for v in node.inputs if v is not None and v is not weights]
    computed = bool(others) and not any(is_learned(v) for v in others)
    if op_name(node) == "Mul":
        return computed and any(op_name(use.node) in ("ReduceSum", "ReduceMean") for use in node.outputs[0].uses())
    return computed and op_name(node) in _PRODUCTS


def _goes_on(node: ir.Node, value: ir.Value) -> bool:
    if op_name(node) in ("Mul", "Div"):
        return any(v is not value and scalar(v) is not None for v in node.inputs)
    return op_name(node) in _HANDS_ON and (op_name(node) == "Where" or node.inputs[0] is value)
