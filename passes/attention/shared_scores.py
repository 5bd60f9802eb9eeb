"""The score product of an attention that others read too: plain operators need not compute it again."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ..canonical import AttentionNode
from ..graph import Builder, dims, op_name, producer, scalar
from ..symbols import same_dim
from .scores import swaps_last

__all__ = ["shared_scores"]


def shared_scores(site: AttentionNode, g: Builder) -> ir.Value | None:
    """The scaled scores of a site, (B, N, S, T), where a product of its query and key is in the graph already.

    Such a one is there when the source hands its scores out. Heads that were repeated are not looked through.
    """
    for query, factor, lifted in _forms(site.query):
        for use in query.uses():
            node = use.node
            if op_name(node) != "MatMul" or use.idx != 0 or node.graph is not site.node.graph:
                continue
            other = _key_factor(node.inputs[1], site.key, lifted)
            product = node.outputs[0]
            if other is not None and factor * other != 0 and product.dtype == site.query.dtype:
                scores = _lifted(g, product, site) if lifted else product
                return g.op("Mul", scores, g.scalar(site.scale / (factor * other), like=site.query))
    return None


def _forms(query: ir.Value) -> Iterator[tuple[ir.Value, float, bool]]:
    """The query as a product may read it: times a number, with its heads in the batch."""
    rank = len(dims(query) or ())
    seen = [(query, 1.0)]
    source = producer(query, "Reshape")
    if source is not None and source.inputs[0] is not None and _merges_heads(source):
        seen.append((source.inputs[0], 1.0))
    for value, factor in seen:
        found = len(dims(value) or ())
        if (found, rank) not in ((4, 4), (3, 4)) or len(seen) > 16:
            continue
        yield value, factor, found == 3
        for use in value.uses():
            after = use.node.outputs[0]
            number = _number(use.node, value)
            if number is not None:
                seen.append((after, factor * number))
            elif op_name(use.node) == "Reshape" and use.idx == 0 and found == 4 and _merges_heads(use.node):
                seen.append((after, factor))


def _merges_heads(reshape: ir.Node) -> bool:
    """Whether a Reshape joins batch and heads, (B, N, S, H) to (B * N, S, H), or parts them again."""
    shapes = [None if v is None else v.shape for v in (reshape.inputs[0], reshape.outputs[0])]
    if shapes[0] is None or shapes[1] is None or {len(s) for s in shapes if s is not None} != {3, 4}:
        return False
    return all(same_dim(a, b) for a, b in zip(shapes[0][-2:], shapes[1][-2:], strict=True))


def _number(node: ir.Node, value: ir.Value) -> float | None:
    """What a node multiplies a value by, when that is a constant number."""
    if op_name(node) not in ("Mul", "Div") or (node.op_type == "Div" and node.inputs[0] is not value):
        return None
    number = scalar(node.inputs[1 if node.inputs[0] is value else 0])
    if number is None or number == 0:
        return None
    return float(number) if node.op_type == "Mul" else 1.0 / float(number)


def _key_factor(operand: ir.Value | None, key: ir.Value, lifted: bool) -> float | None:
    """f when an operand is the transposed key times f, else None."""
    factor, turned = 1.0, False
    targets = [key]
    turned_key = producer(key, "Transpose")
    for _ in range(8):
        if operand is None:
            return None
        if turned and _same(operand, targets[0], lifted):
            return factor
        if not turned and turned_key is not None and swaps_last(turned_key) and operand is turned_key.inputs[0]:
            return factor
        node = producer(operand, "Transpose", "Mul", "Div")
        if node is None:
            return None
        if node.op_type == "Transpose":
            if turned or not swaps_last(node):
                return None
            turned, operand = True, node.inputs[0]
            continue
        side = 1 if scalar(node.inputs[1]) is not None else 0
        value = node.inputs[1 - side]
        number = None if value is None else _number(node, value)
        if number is None:
            return None
        factor, operand = factor * number, value
    return None


def _same(value: ir.Value, key: ir.Value, lifted: bool) -> bool:
    """Whether a value is the key, or the key with its heads in the batch."""
    if value is key or not lifted:
        return value is key
    here, there = producer(value, "Reshape"), producer(key, "Reshape")
    merged = here is not None and _merges_heads(here) and here.inputs[0] is key
    return merged or (there is not None and _merges_heads(there) and there.inputs[0] is value)


def _lifted(g: Builder, product: ir.Value, site: AttentionNode) -> ir.Value:
    """(B * N, S, T) scores as (B, N, S, T)."""
    assert site.query.shape is not None and site.key.shape is not None
    lead = g.op("Shape", site.query, start=0, end=3, dtype=ir.DataType.INT64, shape=[3])
    keys = g.op("Shape", site.key, start=2, end=3, dtype=ir.DataType.INT64, shape=[1])
    shape = [*list(site.query.shape)[:3], site.key.shape[2]]
    return g.op("Reshape", product, g.op("Concat", lead, keys, axis=0), dtype=product.dtype, shape=shape)
