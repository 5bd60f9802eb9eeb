"""The canonical linear attention: one private op for the gated delta rule and its simpler relatives.

Captured calls become ``deployml.canonical::LinearAttention``; the lowering reads nothing else. What it does not
take is expanded to a Scan over the sequence, one step a token.

Signature (version 1)::

    output, present = LinearAttention(query, key, value, decay, beta, state?)

    query  (B, S, N, K)  float         key    (B, S, N, K)          value  (B, S, N, V)
    decay  (B, S, N) or (B, S, N, K): the logarithm of what is left of the state, per head or per key channel
    beta   (B, S, N): how much of the state's answer to a key is replaced
    state  (B, N, K, V): zeros when absent
    output (B, S, N, V)                present (B, N, K, V)

    for each token:  state = exp(decay) * state
                     state = state + key (x) (beta * (value - key @ state))
                     output = scale * query @ state

Source: Yang, Kautz, Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule", 2024; per-channel decay
as in "Kimi Linear: An Expressive, Efficient Attention Architecture", 2025.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from .graph import Builder, attribute

__all__ = ["NAME", "RecurrenceNode", "expand", "is_recurrence", "read"]

NAME: Final = "LinearAttention"
_DOMAIN: Final = "deployml.canonical"


def is_recurrence(node: ir.Node | None) -> bool:
    """Whether a node is the canonical linear attention."""
    return node is not None and node.domain == _DOMAIN and node.op_type == NAME


@dataclass(frozen=True, slots=True)
class RecurrenceNode:
    """A canonical linear attention read from its node; shapes as in the module's signature."""

    node: ir.Node
    query: ir.Value
    key: ir.Value
    value: ir.Value
    decay: ir.Value
    beta: ir.Value
    state: ir.Value | None
    scale: float


def read(node: ir.Node) -> RecurrenceNode:
    """Read a canonical linear attention node.

    Raises:
        ValueError: if the node is something else.
    """
    if not is_recurrence(node):
        raise ValueError(f"{node.name} is {node.domain}::{node.op_type}, not a canonical linear attention")
    query, key, value, decay, beta, state = [*node.inputs, None][:6]
    assert query is not None and key is not None and value is not None and decay is not None and beta is not None
    return RecurrenceNode(node, query, key, value, decay, beta, state, float(attribute(node, "scale", 1.0)))


def expand(site: RecurrenceNode, g: Builder) -> tuple[ir.Value, ir.Value]:
    """Write a canonical linear attention as a Scan (opset 15 or newer).

    Returns:
        (output, present).
    """
    scaled = g.op("Mul", site.query, g.scalar(site.scale, like=site.query))
    state = site.state if site.state is not None else _zeros(site, g)
    remains = g.op("Exp", site.decay)
    last = [4] if _rank(site.decay) == 4 else [3, 4]
    columns = [g.op("Unsqueeze", remains, g.const(np.array(last, np.int64)))]
    for value, axis in ((scaled, 3), (site.key, 4), (site.key, 3), (site.value, 3)):
        columns.append(g.op("Unsqueeze", value, g.const(np.array([axis], np.int64))))
    columns.append(g.op("Unsqueeze", site.beta, g.const(np.array([3, 4], np.int64))))
    present, rows = g.op(
        "Scan",
        state,
        *columns,
        outputs=2,
        body=_step(),
        num_scan_inputs=len(columns),
        scan_input_axes=[1] * len(columns),
        scan_output_axes=[1],
    )
    return g.op("Squeeze", rows, g.const(np.array([3], np.int64))), present


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _zeros(site: RecurrenceNode, g: Builder) -> ir.Value:
    """The state before the first token, (B, N, K, V)."""
    batch = g.op("Shape", site.key, start=0, end=1)
    shape = g.op("Concat", batch, g.op("Shape", site.key, start=2), g.op("Shape", site.value, start=3), axis=0)
    dtype = site.query.dtype or ir.DataType.FLOAT
    return g.op("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype.numpy())))


def _step() -> ir.Graph:
    """One token. Types of the inputs are left to inference: they are those of the model."""
    names = ("state", "remains", "query", "key_column", "key_row", "value", "beta")
    state, remains, query, key_column, key_row, value, beta = inputs = [ir.Value(name=n) for n in names]
    nodes: list[ir.Node] = []

    def op(name: str, *operands: ir.Value) -> ir.Value:
        node = ir.node(name, operands, name=f"step.{len(nodes)}")
        node.outputs[0].name = f"step.{len(nodes)}_out"
        nodes.append(node)
        return node.outputs[0]

    kept = op("Mul", state, remains)
    correction = op("Mul", op("Sub", value, op("MatMul", key_row, kept)), beta)
    present = op("Add", kept, op("MatMul", key_column, correction))
    return ir.Graph(inputs, [present, op("MatMul", query, present)], nodes=nodes, name="token")
