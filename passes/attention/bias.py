"""ATT110: the biases of the query, key and value projections move into MultiHeadAttention."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..capability import MHA
from ..graph import Builder, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["ProjectionBias"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The node and, for query, key and value, the tensor before its bias and the bias (None: there is none)."""

    node: ir.Node
    tensors: tuple[ir.Value, ir.Value, ir.Value]
    biases: tuple[ir.Value | None, ir.Value | None, ir.Value | None]
    widths: tuple[int, int, int]


class ProjectionBias(Rule):
    """Constant vectors added to query, key or value right before a MultiHeadAttention.

    ## What it finds
    A MultiHeadAttention without a bias input, whose (B, S, N * H) query, key or value is an Add of a constant
    vector of length N * H that nothing else reads.

    ## Why
    The operator adds the three biases while it re-orders the heads: up to three nodes and three passes over
    memory fewer.

    ## Before -> After
    ``MHA(xq + bq, xk + bk, xv + bv)`` -> ``MHA(xq, xk, xv, Concat(bq, bk, bv))``. A missing bias counts as zeros.

    ## When it declines
    ``packed-or-cached`` (keys are no 3-D tensors or a cache is read), ``few-biases`` (one alone does not pay).

    ## Numerics
    ROUNDING.

    ## References
    onnxruntime docs/ContribOperators.md, com.microsoft.MultiHeadAttention.
    """

    code = "ATT110"
    name = "projection-bias"
    safety = Safety.ROUNDING
    anchors = frozenset({MHA})
    emits = (MHA,)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        inputs = [*node.inputs, *[None] * (10 - len(node.inputs))]
        query, key, value = inputs[:3]
        if inputs[3] is not None or query is None:
            raise Declined("no-match", "a bias is there already")
        if key is None or value is None or any(v is not None for v in inputs[6:]):
            raise Declined("packed-or-cached", "keys and values are packed or come from a cache", at=node)
        if any(len(dims(v) or ()) != 3 for v in (query, key, value)):
            raise Declined("packed-or-cached", "query, key and value are not all three-dimensional", at=node)
        found = [_split(v) for v in (query, key, value)]
        if sum(b is not None for _, b in found) < 2:
            raise Declined("few-biases", "fewer than two of the projections have a bias", at=node)
        widths = tuple(w for v in (query, key, value) if isinstance(w := (dims(v) or (None,))[-1], int))
        if len(widths) != 3:
            raise Declined("packed-or-cached", "the width of a projection is not fixed", at=node)
        tensors = tuple(t for t, _ in found)
        biases = tuple(b for _, b in found)
        return Facts(node, tensors, biases, widths)  # type: ignore[arg-type]

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node = facts.node
        dtype = facts.tensors[0].dtype or ir.DataType.FLOAT
        parts = [
            bias if bias is not None else _zeros(g, width, dtype)
            for bias, width in zip(facts.biases, facts.widths, strict=True)
        ]
        packed = g.op("Concat", *parts, axis=0, dtype=dtype, shape=[sum(facts.widths)])
        made = g.op(
            MHA,
            *facts.tensors,
            packed,
            *list(node.inputs)[4:],
            dtype=node.outputs[0].dtype,
            shape=node.outputs[0].shape,
            **{a.name: a.value for a in node.attributes.values()},
        )
        g.keep_name(node)
        return Replacement(old=[node.outputs[0]], new=[made])


def _zeros(g: Builder, width: int, dtype: ir.DataType) -> ir.Value:
    """A bias that is absent; its zeros are meant, they are no stand-in for weights."""
    zeros = g.const(np.zeros(width, dtype.numpy()))
    g.relies_on(zeros)
    return zeros


def _split(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    node = producer(value, "Add")
    if node is None or len(value.uses()) != 1 or value.is_graph_output():
        return value, None
    left, right = node.inputs
    for tensor, bias in ((left, right), (right, left)):
        vector = bias is not None and bias.const_value is not None and not bias.is_graph_input()
        if vector and tensor is not None and len(dims(bias) or ()) == 1 and dims(bias) == (dims(value) or (None,))[-1:]:
            return tensor, bias
    return value, None


def _text(body: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[B,S,64] a, float[B,S,64] b, float[B,S,64] c, float[64] dyn) => (float[B,S,64] y)
<float[64] bq = {{{",".join(["0.5"] * 64)}}}, float[64] bv = {{{",".join(["-0.25"] * 64)}}},
 float[B,S,64] q, float[B,S,64] k, float[B,S,64] v> {{
{body}
}}"""


_MHA = "com.microsoft.MultiHeadAttention <num_heads = 4>"
ProjectionBias.examples = (
    Example(text=_text(f"  q = Add (a, bq)\n  v = Add (c, bv)\n  y = {_MHA} (q, b, v)"), fires=1, emits={MHA: 1}),
    Example(text=_text(f"  q = Add (bq, a)\n  v = Add (c, bv)\n  y = {_MHA} (q, q, v)"), because="few-biases"),
    Example(text=_text(f"  q = Add (a, bq)\n  v = Add (bv, c)\n  y = {_MHA} (v, b, q)"), fires=1),
    Example(text=_text(f"  k = Add (a, bq)\n  v = Add (c, bv)\n  y = {_MHA} (b, k, v)"), fires=1, emits={MHA: 1}),
    Example(text=_text(f"  q = Add (a, dyn)\n  v = Add (c, bv)\n  y = {_MHA} (q, b, v)"), because="few-biases"),
)
