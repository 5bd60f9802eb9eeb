"""The canonical attention: one private op that holds everything an attention call meant.

Captured calls and recognised sub-graphs both become ``deployml.canonical::Attention``; lowerings read nothing
else. The op never leaves the pipeline: what no lowering takes is expanded to plain operators again.

Signature (version 1)::

    output[, weights] = Attention(query, key, value, mask?, bias?, sink?)

    query   (B, N, S, H)        float        key   (B, Nkv, T, H)   N a multiple of Nkv, never expanded
    value   (B, Nkv, T, Hv)     float        mask  bool, broadcastable to (B, N, S, T), True = attend
    bias    float, broadcastable to (B, N, S, T), added to the scaled scores
    sink    (N,) float: a logit of a key with no value, in every row of that head's softmax
    output  (B, N, S, Hv)       weights  (B, N, S, T), after softmax

    scores  = softcap(query @ key^T * scale) + bias, then -inf where mask or causality forbid
    output  = softmax(scores) @ value

The order of softcap, bias and mask is that of ai.onnx Attention-23 as corrected for opset 24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import onnx_ir as ir

from . import canonical_experts, canonical_recurrence
from .graph import Builder, attribute, remove_node

__all__ = ["DOMAIN", "NAME", "AttentionNode", "expand", "expand_all", "is_attention", "read"]

DOMAIN: Final = "deployml.canonical"
NAME: Final = "Attention"

Causal = Literal["none", "upper_left", "lower_right"]
EmptyRows = Literal["zero", "as_written"]


def is_attention(node: ir.Node | None) -> bool:
    """Whether a node is the canonical attention."""
    return node is not None and node.domain == DOMAIN and node.op_type == NAME


@dataclass(frozen=True, slots=True)
class AttentionNode:
    """A canonical attention read from its node: typed attributes and named inputs.

    Attributes:
        node: The node itself.
        query, key, value: Inputs as in the module's signature.
        mask: Boolean keep mask or None.
        bias: Additive bias or None.
        sink: Sink logits or None.
        scale: Factor on the score product.
        causal: "upper_left" keeps key j for query i when j <= i, "lower_right" when j <= i + T - S.
        softcap: c of c * tanh(x / c), 0.0 for none.
        empty_rows: What a row without any key gives: "zero", or "as_written" (NaN, or the mean for finite masks).
        origin: "sdpa", "softmax" or "op".
    """

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    mask: ir.Value | None
    bias: ir.Value | None
    sink: ir.Value | None
    scale: float
    causal: Causal
    softcap: float
    empty_rows: EmptyRows
    origin: str

    @property
    def output(self) -> ir.Value:
        """The attention result, (B, N, S, Hv)."""
        return self.node.outputs[0]

    @property
    def weights(self) -> ir.Value | None:
        """The softmax result when anything reads it, else None."""
        if len(self.node.outputs) < 2:
            return None
        value = self.node.outputs[1]
        return value if value.uses() or value.is_graph_output() else None


def read(node: ir.Node) -> AttentionNode:
    """Read a canonical attention node.

    Raises:
        ValueError: if the node is something else.
    """
    if not is_attention(node):
        raise ValueError(f"{node.name} is {node.domain}::{node.op_type}, not a canonical attention")
    inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
    query, key, value, mask, bias, sink = inputs[:6]
    assert query is not None and key is not None and value is not None
    return AttentionNode(
        node=node,
        query=query,
        key=key,
        value=value,
        mask=mask,
        bias=bias,
        sink=sink,
        scale=float(attribute(node, "scale", 1.0)),
        causal=attribute(node, "causal", "none"),
        softcap=float(attribute(node, "softcap", 0.0)),
        empty_rows=attribute(node, "empty_rows", "zero"),
        origin=attribute(node, "origin", "sdpa"),
    )


def heads(value: ir.Value) -> int | None:
    """The static head count of a (B, N, S, H) value, or None."""
    return _static(value, 1)


def head_size(value: ir.Value) -> int | None:
    """The static head size of a (B, N, S, H) value, or None."""
    return _static(value, 3)


def _static(value: ir.Value, axis: int) -> int | None:
    shape = value.shape
    if shape is None or len(shape) != 4:
        return None
    dim = shape[axis]
    return dim if isinstance(dim, int) else None


def expand(site: AttentionNode, g: Builder, product: ir.Value | None = None) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Write a canonical attention as plain operators (opset 14 or newer).

    Args:
        site: The attention.
        g: Receives the nodes.
        product: The scaled score product, where the graph computes it already.

    Returns:
        (output, weights, scores): scores are the masked logits, before the softmax.
    """
    key, value = _repeat_heads(site, g)
    if product is None:
        query = g.op("Mul", site.query, g.scalar(site.scale, like=site.query))
        product = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = product
    if site.softcap:
        cap = g.scalar(site.softcap, like=site.query)
        scores = g.op("Mul", g.op("Tanh", g.op("Div", scores, cap)), cap)
    if site.bias is not None:
        scores = g.op("Add", scores, site.bias)
    lowest = g.scalar(-np.inf, like=site.query)
    if site.mask is not None:
        scores = g.op("Where", site.mask, scores, lowest)
    if site.causal != "none":
        scores = g.op("Where", _causal(site, g), scores, lowest)
    weights = _softmax(site, scores, g)
    return g.op("MatMul", weights, value), weights, scores


def _repeat_heads(site: AttentionNode, g: Builder) -> tuple[ir.Value, ir.Value]:
    count, kv_count = heads(site.query), heads(site.key)
    if count == kv_count or count is None or kv_count is None:
        return site.key, site.value
    groups = g.const(np.array([1, 1, count // kv_count, 1, 1], np.int64))

    def repeat(value: ir.Value) -> ir.Value:
        wide = g.op("Expand", g.op("Unsqueeze", value, g.const(np.array([2], np.int64))), groups)
        size = head_size(value)
        return g.op("Reshape", wide, g.const(np.array([0, count, -1, size], np.int64)))

    return repeat(site.key), repeat(site.value)


def _causal(site: AttentionNode, g: Builder) -> ir.Value:
    rows = g.op("Shape", site.query, start=2, end=3)
    columns = g.op("Shape", site.key, start=2, end=3)
    ones = g.op(
        "ConstantOfShape",
        g.op("Concat", rows, columns, axis=0),
        value=ir.tensor(np.array([1], np.int64)),
    )
    if site.causal == "upper_left":
        lower = g.op("Trilu", ones, upper=0)
    else:
        offset = g.op("Squeeze", g.op("Sub", columns, rows), g.const(np.array([0], np.int64)))
        lower = g.op("Trilu", ones, offset, upper=0)
    return g.op("Cast", lower, to=ir.DataType.BOOL)


def _softmax(site: AttentionNode, scores: ir.Value, g: Builder) -> ir.Value:
    if site.sink is not None:
        column = g.op("Reshape", site.sink, g.const(np.array([1, -1, 1, 1], np.int64)))
        rows = g.op("Shape", scores)
        axis = g.const(np.array([3], np.int64))
        head = g.op("Slice", rows, g.const(np.array([0], np.int64)), axis)
        column = g.op("Expand", column, g.op("Concat", head, g.const(np.array([1], np.int64)), axis=0))
        wide = g.op("Softmax", g.op("Concat", scores, column, axis=3), axis=-1)
        return g.op(
            "Slice",
            wide,
            g.const(np.array([0], np.int64)),
            g.const(np.array([-1], np.int64)),
            axis,
        )
    weights = g.op("Softmax", scores, axis=-1)
    masked = site.mask is not None or site.bias is not None or site.causal == "lower_right"
    if site.empty_rows == "as_written" or not masked:
        return weights
    return g.op("Where", g.op("IsNaN", weights), g.scalar(0.0, like=site.query), weights)


def expand_all(model: ir.Model) -> int:
    """Replace every canonical operator of a model by plain ones, in place.

    Returns:
        How many were replaced.
    """
    count = 0
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        for node in list(graph.all_nodes()):
            if node.domain != DOMAIN:
                continue
            replace_by_plain(node)
            count += 1
    if count:
        model.graph.opset_imports.pop(DOMAIN, None)
    return count


def replace_by_plain(
    node: ir.Node, product: Callable[[AttentionNode, Builder], ir.Value | None] = lambda _site, _g: None
) -> tuple[ir.Value, ...]:
    """Expand one canonical node where it stands.

    Args:
        node: The node.
        product: Finds the scaled score product of an attention in the graph, see :func:`expand`.

    Returns:
        What :func:`expand` returned, or its namesake for linear attention and grouped products.
    """
    graph = node.graph
    assert graph is not None
    g = Builder(graph, prefix=node.name or NAME, like=node)
    result: tuple[ir.Value, ...]
    if is_attention(node):
        site = read(node)
        result = expand(site, g, product(site, g))
    elif canonical_experts.is_grouped(node):
        result = canonical_experts.expand(canonical_experts.read(node), g)
    else:
        result = canonical_recurrence.expand(canonical_recurrence.read(node), g)
    g.insert_before(node)
    for old, new in zip(node.outputs, result, strict=False):
        g.take_over(old, new)
    remove_node(node)
    return result
