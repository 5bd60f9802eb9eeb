"""The ONNX form of the operator: node, and the function body a model carries as its fallback.

Where the library is registered, onnxruntime runs the kernel; where it is not, it inlines the function. The body is
written in plain operators with float32 arithmetic and refers to the node's attributes, so one function serves all
nodes of a signature.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from ..libraries import DOMAIN
from .op import ATTRIBUTES, Attributes, Signature

__all__ = ["VERSION", "add_function", "function_body", "make_node"]

#: Version of the domain's operator set.
VERSION: Final = 1

_TYPES: Final = {"INT": ir.AttributeType.INT, "FLOAT": ir.AttributeType.FLOAT}


def make_node(
    signature: Signature, inputs: Mapping[str, ir.Value], attributes: Attributes, *, name: str | None = None
) -> ir.Node:
    """A node of the operator, not yet in any graph.

    Args:
        signature: Which inputs are given; ``inputs`` must have exactly these.
        inputs: Values under the names of ``signature.inputs``.
        attributes: Written to the node in full.
        name: Name of the node.

    Raises:
        KeyError: if an input of the signature is missing.
    """
    given = asdict(attributes)
    return ir.Node(
        DOMAIN,
        signature.op_type,
        [inputs[name] for name in signature.inputs],
        [ir.Attr(key, _TYPES[kind], given[key]) for key, kind in ATTRIBUTES.items()],
        num_outputs=len(signature.outputs),
        name=name,
    )


def add_function(model: ir.Model, signature: Signature) -> None:
    """Make sure the model imports the domain and carries the function body of this signature."""
    model.graph.opset_imports[DOMAIN] = VERSION
    function = function_body(signature, opset=model.graph.opset_imports.get("", 18))
    model.functions.setdefault(function.identifier(), function)


class _Writer:
    """Collects plain nodes; every method returns the value it made."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.count = 0

    def op(self, op_type: str, *inputs: ir.Value, outputs: int = 1, **attributes: Any) -> ir.Value:
        attrs = [v if isinstance(v, ir.Attr) else _attr(k, v) for k, v in attributes.items()]
        node = ir.Node("", op_type, inputs, attrs, num_outputs=outputs)
        for value in node.outputs:
            value.name = f"v{self.count}"
            self.count += 1
        self.nodes.append(node)
        return node.outputs[0]

    def constant(self, array: Any, dtype: Any) -> ir.Value:
        return self.op("Constant", value=ir.tensor(np.asarray(array, dtype)))

    def ints(self, *values: int) -> ir.Value:
        return self.constant(values, np.int64)

    def attribute(self, name: str) -> ir.Value:
        """The node's attribute as a scalar."""
        kind = ATTRIBUTES[name]
        key = "value_int" if kind == "INT" else "value_float"
        return self.op("Constant", **{key: ir.RefAttr(key, name, _TYPES[kind])})

    def vector(self, scalar: ir.Value) -> ir.Value:
        return self.op("Reshape", scalar, self.ints(1))

    def shape(self, value: ir.Value, *dims: ir.Value) -> ir.Value:
        """Reshape to sizes given one by one; a 0 is an empty axis."""
        return self.op("Reshape", value, self.op("Concat", *dims, axis=0), allowzero=1)

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        return self.op("Shape", value, start=axis, end=axis + 1)


def _attr(name: str, value: Any) -> ir.Attr:
    if isinstance(value, ir.Graph):
        return ir.AttrGraph(name, value)
    if isinstance(value, (ir.Tensor, ir.TensorProtocol)):
        return ir.AttrTensor(name, value)
    if isinstance(value, (list, tuple)):
        return ir.AttrInt64s(name, list(value))
    return ir.AttrInt64(name, int(value))


def function_body(signature: Signature, *, opset: int = 18) -> ir.Function:
    """The operator of this signature as an ONNX function of plain operators.

    Args:
        signature: Which inputs the function has.
        opset: ai.onnx version the body imports (18 or newer), that of the model it goes into.
    """
    inputs = {name: ir.Value(name=name) for name in signature.inputs}
    w = _Writer()
    outputs = _write(w, signature, inputs)
    for value, name in zip(outputs, signature.outputs, strict=True):
        value.name = name
    graph = ir.Graph(
        list(inputs.values()),
        outputs,
        nodes=w.nodes,
        opset_imports={"": max(opset, 18)},
        name=signature.op_type,
    )
    parameters = [ir.Attr(name, _TYPES[kind], None) for name, kind in ATTRIBUTES.items()]
    return ir.Function(DOMAIN, signature.op_type, graph=graph, attributes=parameters)


def _write(w: _Writer, signature: Signature, given: Mapping[str, ir.Value]) -> list[ir.Value]:
    heads, kv_heads = w.vector(w.attribute("num_heads")), w.vector(w.attribute("kv_heads"))
    first, *others = _apart(w, given["packed"], heads, kv_heads) if signature.layout == "packed" else _three(given)
    query = _heads_first(w, first, heads, signature)
    key, value = (_heads_first(w, x, kv_heads, signature) for x in others)
    if signature.past:
        key = w.op("Concat", given["past_key"], key, axis=2)
        value = w.op("Concat", given["past_value"], value, axis=2)
    if signature.cache:
        key = _written(w, given["past_key"], key, given["key_lengths"])
        value = _written(w, given["past_value"], value, given["key_lengths"])
    scores = _scores(w, query, key, heads, kv_heads)
    scores = _shaped(w, signature, given, scores)
    weights, empty = _softmax(w, given.get("sink"), scores)
    zero = w.constant(0.0, np.float32)
    output = w.op("Where", empty, zero, _times(w, weights, value, kv_heads))
    output = w.op("CastLike", output, first)
    if signature.layout != "bnsh":
        width = w.op("Mul", w.size(output, 1), w.size(output, 3))
        turned = w.op("Transpose", output, perm=[0, 2, 1, 3])
        output = w.shape(turned, w.size(output, 0), w.size(output, 2), width)
    if signature.weights:
        return [output, w.op("CastLike", w.op("Where", empty, zero, weights), first)]
    if not (signature.past or signature.cache):
        return [output]
    return [output, w.op("Identity", key), w.op("Identity", value)]


def _three(given: Mapping[str, ir.Value]) -> list[ir.Value]:
    return [given[name] for name in ("query", "key", "value")]


def _apart(w: _Writer, packed: ir.Value, heads: ir.Value, kv_heads: ir.Value) -> list[ir.Value]:
    """Query, key and value out of one (B, S, (N + 2 * Nkv) * H) tensor."""
    dim = w.op("Div", w.size(packed, 2), w.op("Add", heads, w.op("Mul", kv_heads, w.ints(2))))
    keys, values = w.op("Mul", heads, dim), w.op("Mul", w.op("Add", heads, kv_heads), dim)
    bounds = (w.ints(0), keys, values, w.size(packed, 2))
    return [w.op("Slice", packed, start, end, w.ints(2)) for start, end in itertools.pairwise(bounds)]


def _written(w: _Writer, buffer: ir.Value, fresh: ir.Value, lengths: ir.Value) -> ir.Value:
    """The buffer (B, Nkv, C, D) with the rows of ``fresh`` as the last ones of each length."""
    rows = w.size(fresh, 2)
    row = w.op("Sub", _range(w, w.size(buffer, 2), 3), w.op("Sub", _lengths(w, lengths, rows), rows))
    inside = w.op("And", w.op("GreaterOrEqual", row, w.ints(0)), w.op("Less", row, rows))
    # Without new rows there is nothing to gather from: a row of zeros stands behind them, and is never kept.
    padded = w.op("Pad", fresh, w.ints(0, 0, 0, 0, 0, 0, 1, 0))
    clipped = w.op("Min", w.op("Max", row, w.ints(0)), rows)
    index = w.op("Expand", clipped, w.op("Shape", buffer))
    return w.op("Where", inside, w.op("GatherElements", padded, index, axis=2), buffer)


def _heads_first(w: _Writer, x: ir.Value, heads: ir.Value, signature: Signature) -> ir.Value:
    """(B, S, N*H) to (B, N, S, H)."""
    if signature.layout == "bnsh":
        return x
    split = w.shape(x, w.size(x, 0), w.size(x, 1), heads, w.op("Div", w.size(x, 2), heads))
    return w.op("Transpose", split, perm=[0, 2, 1, 3])


def _float(w: _Writer, x: ir.Value) -> ir.Value:
    return w.op("Cast", x, to=int(ir.DataType.FLOAT))


def _grouped(w: _Writer, x: ir.Value, kv_heads: ir.Value) -> ir.Value:
    """(B, N, S, D) to (B, Nkv, N/Nkv, S, D)."""
    group = w.op("Div", w.size(x, 1), kv_heads)
    return w.shape(x, w.size(x, 0), kv_heads, group, w.size(x, 2), w.size(x, 3))


def _scores(w: _Writer, query: ir.Value, key: ir.Value, heads: ir.Value, kv_heads: ir.Value) -> ir.Value:
    """Scaled products, (B, N, S, T): the heads of a group meet their key head by broadcasting."""
    scale = w.attribute("scale")
    size = _float(w, w.size(query, 3))
    usual = w.op("Div", w.constant(1.0, np.float32), w.op("Sqrt", size))
    zero = w.constant(0.0, np.float32)
    scaled = w.op("Mul", _float(w, query), w.op("Where", w.op("Equal", scale, zero), usual, scale))
    columns = w.op("Transpose", w.op("Unsqueeze", _float(w, key), w.ints(2)), perm=[0, 1, 2, 4, 3])
    product = w.op("MatMul", _grouped(w, scaled, kv_heads), columns)
    return w.shape(product, w.size(query, 0), heads, w.size(query, 2), w.size(key, 2))


def _shaped(w: _Writer, signature: Signature, given: Mapping[str, ir.Value], scores: ir.Value) -> ir.Value:
    """Softcap, ALiBi, bias, then -inf where a key takes no part."""
    scores = _capped(w, scores)
    rows, keys = w.size(scores, 2), w.size(scores, 3)
    lengths = _lengths(w, given.get("key_lengths"), keys)
    offset = w.op("Mul", w.op("Sub", lengths, rows), w.attribute("lower_right"))
    position = w.op("Add", _range(w, rows, 3), offset)  # (B or 1, 1, S, 1)
    j = _range(w, keys, 4)  # (1, 1, 1, T)
    if signature.slopes:
        slopes = w.op("Reshape", _float(w, given["slopes"]), w.ints(-1, 1, 1))
        distance = _float(w, w.op("Abs", w.op("Sub", position, j)))
        scores = w.op("Sub", scores, w.op("Mul", slopes, distance))
    if signature.table:
        scores = w.op("Add", scores, _looked_up(w, given["table"], w.op("Sub", j, position)))
    if signature.bias:
        scores = w.op("Add", scores, _float(w, given["bias"]))
    keep = _window(w, position, j)
    if signature.lengths:
        keep = w.op("And", keep, w.op("Less", j, lengths))
    if signature.mask:
        keep = w.op("And", keep, given["mask"])
    return w.op("Where", keep, scores, w.constant(-np.inf, np.float32))


def _looked_up(w: _Writer, table: ir.Value, distance: ir.Value) -> ir.Value:
    """The entries of a (N or 1, 2D + 1) table at distances (B or 1, 1, S, T), as (B or 1, N or 1, S, T)."""
    reach = w.op("Div", w.size(table, 1), w.ints(2))
    clipped = w.op("Min", w.op("Max", distance, w.op("Neg", reach)), reach)
    found = w.op("Gather", _float(w, table), w.op("Add", clipped, reach), axis=1)  # (N or 1, B or 1, 1, S, T)
    return w.op("Transpose", w.op("Squeeze", found, w.ints(2)), perm=[1, 0, 2, 3])


def _lengths(w: _Writer, lengths: ir.Value | None, keys: ir.Value) -> ir.Value:
    if lengths is None:
        return keys
    wide = w.op("Cast", lengths, to=int(ir.DataType.INT64))
    return w.op("Reshape", wide, w.ints(-1, 1, 1, 1))


def _range(w: _Writer, size: ir.Value, rank: int) -> ir.Value:
    """0, 1, ... as (1, 1, n, 1) for rank 3 and as (1, 1, 1, n) for rank 4."""
    scalar = w.op("Reshape", size, w.op("Constant", value=ir.tensor(np.zeros(0, np.int64))))
    counted = w.op("Range", w.constant(0, np.int64), scalar, w.constant(1, np.int64))
    return w.op("Reshape", counted, w.ints(*((1, 1, -1, 1) if rank == 3 else (1, 1, 1, -1))))


def _window(w: _Writer, position: ir.Value, j: ir.Value) -> ir.Value:
    """Whether causality and window let row and key meet. An unbounded side is a very long one."""
    far, zero = w.constant(2**40, np.int64), w.constant(0, np.int64)
    left, right = w.attribute("window_left"), w.attribute("window_right")
    left = w.op("Where", w.op("Less", left, zero), far, left)
    right = w.op("Where", w.op("Less", right, zero), far, right)
    right = w.op("Where", w.op("Greater", w.attribute("causal"), zero), zero, right)
    after = w.op("GreaterOrEqual", j, w.op("Sub", position, left))
    before = w.op("LessOrEqual", j, w.op("Add", position, right))
    return w.op("And", after, before)


def _capped(w: _Writer, scores: ir.Value) -> ir.Value:
    """cap * tanh(scores / cap) when the attribute is not 0; the other branch costs nothing."""
    zero = w.constant(0.0, np.float32)
    wanted = w.op("Greater", w.attribute("softcap"), zero)
    inner = _Writer()
    inner.count = 1000  # names of the branches must differ from those around them
    cap = inner.attribute("softcap")
    capped = inner.op("Mul", cap, inner.op("Tanh", inner.op("Div", scores, cap)))
    plain = _Writer()
    plain.count = 2000
    same = plain.op("Identity", scores)
    return w.op(
        "If",
        wanted,
        then_branch=ir.Graph([], [capped], nodes=inner.nodes, name="capped"),
        else_branch=ir.Graph([], [same], nodes=plain.nodes, name="plain"),
    )


def _softmax(w: _Writer, sink: ir.Value | None, scores: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Softmax with the sink as one more column that is cut off again, and which rows have no key: NaN stands there."""
    keys = w.size(scores, 3)
    if sink is not None:
        column = w.op("Reshape", _float(w, sink), w.ints(1, -1, 1, 1))
        lead = w.op("Concat", w.size(scores, 0), w.ints(1), w.size(scores, 2), w.ints(1), axis=0)
        scores = w.op("Concat", scores, w.op("Expand", column, lead), axis=3)
    top = w.op("ReduceMax", scores, w.ints(-1), keepdims=1)
    weights = w.op("Softmax", scores, axis=-1)
    if sink is not None:
        weights = w.op("Slice", weights, w.ints(0), keys, w.ints(3))
    return weights, w.op("Equal", top, w.constant(-np.inf, np.float32))


def _times(w: _Writer, weights: ir.Value, value: ir.Value, kv_heads: ir.Value) -> ir.Value:
    """Weights (B, N, S, T) times the values of each head's group."""
    product = w.op("MatMul", _grouped(w, weights, kv_heads), w.op("Unsqueeze", _float(w, value), w.ints(2)))
    return w.shape(product, w.size(weights, 0), w.size(weights, 1), w.size(weights, 2), w.size(value, 3))
