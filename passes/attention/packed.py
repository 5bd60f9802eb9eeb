"""ATT111: the three projections of an attention computed by one matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..capability import GQA, MHA
from ..graph import Builder, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .own import OwnAttention

__all__ = ["SeparateProjections"]


@dataclass(frozen=True, slots=True)
class Projection:
    """``result = source @ weight (+ bias)``."""

    result: ir.Value
    source: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    width: int


@dataclass(frozen=True, slots=True)
class Facts:
    """The attention node and its projections of one and the same tensor."""

    node: ir.Node
    parts: tuple[Projection, ...]


class SeparateProjections(Rule):
    """Query, key and value projected from one tensor by three products.

    ## What it finds
    A lowered self-attention whose query, key and value are MatMuls of one tensor by three constant matrices,
    each used once, all with a constant bias or all without.

    ## Why
    One wide product reads the tensor once and shares its work among threads in larger pieces; three biases are
    added in one pass. Measured on two AVX-512 cores it costs nothing and saves one to three nodes a layer.

    ## Before -> After
    ``x @ Wq, x @ Wk, x @ Wv`` -> ``Split(x @ Concat(Wq, Wk, Wv))``; the concatenated matrix is stored.

    ## When it declines
    ``shared-weights`` (a matrix with other readers would be stored twice), ``mixed-biases``, otherwise there is
    nothing to find.

    ## Numerics
    ROUNDING.

    ## References
    Vaswani et al., 2017, section 3.2.2.
    """

    code = "ATT111"
    name = "separate-projections"
    safety = Safety.ROUNDING
    anchors = frozenset({MHA, GQA, *OwnAttention.emits})
    emits = ("Split",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        parts = tuple(_projection(v) for v in node.inputs[:3])
        found = [p for p in parts if p is not None]
        if len(found) != 3 or len({id(p.source) for p in found}) != 1 or len({id(p.result) for p in found}) != 3:
            raise Declined("no-match", "query, key and value are not three projections of one tensor")
        if any(len(p.weight.uses()) != 1 for p in found):
            raise Declined("shared-weights", "a projection matrix has other readers", at=node)
        if len({p.bias is None for p in found}) != 1:
            raise Declined("mixed-biases", "some of the projections have a bias and some have none", at=node)
        return Facts(node, tuple(found))

    def build(self, facts: Facts, g: Builder) -> Replacement:
        parts = facts.parts
        widths = [p.width for p in parts]
        first = parts[0]
        depth = (dims(first.weight) or (None,))[0]
        weight = g.op(
            "Concat", *[p.weight for p in parts], axis=1, dtype=first.weight.dtype, shape=[depth, sum(widths)]
        )
        lead = list(first.result.shape or ())[:-1]
        wide = g.op("MatMul", first.source, weight, dtype=first.result.dtype, shape=[*lead, sum(widths)])
        if first.bias is not None:
            biases = [p.bias for p in parts]
            bias = g.op("Concat", *biases, axis=0, dtype=first.bias.dtype, shape=[sum(widths)])
            wide = g.op("Add", wide, bias, dtype=first.result.dtype, shape=wide.shape)
        made = g.op("Split", wide, g.const(np.array(widths, np.int64)), outputs=3, axis=-1)
        for value, part in zip(made, parts, strict=True):
            value.type, value.shape = ir.TensorType(first.result.dtype or ir.DataType.FLOAT), part.result.shape
        return Replacement(old=[p.result for p in parts], new=list(made))


def _projection(value: ir.Value | None) -> Projection | None:
    if value is None or len(dims(value) or ()) != 3 or len(value.uses()) != 1 or value.is_graph_output():
        return None
    product, bias = value, None
    add = producer(value, "Add")
    if add is not None:
        left, right = add.inputs
        product, bias = (left, right) if _weight(right, 1) else (right, left)  # type: ignore[assignment]
        if not _weight(bias, 1) or product is None or len(product.uses()) != 1:
            return None
    matmul = producer(product, "MatMul")
    if matmul is None:
        return None
    source, weight = matmul.inputs
    if source is None or weight is None or not _weight(weight, 2):
        return None
    width = (dims(weight) or (None, None))[1]
    if not isinstance(width, int) or (bias is not None and dims(bias) != (width,)):
        return None
    return Projection(value, source, weight, bias, width)


def _weight(value: ir.Value | None, rank: int) -> bool:
    constant = value is not None and value.const_value is not None and not value.is_graph_input()
    return constant and len(dims(value) or ()) == rank


def _text(body: str) -> str:
    zeros = ",".join(["0.5"] * 16)
    weights = ", ".join(f"float[4,4] w{n} = {{{zeros}}}" for n in "qkv")
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[B,S,4] x, float[B,S,4] other) => (float[B,S,4] y)
<{weights}, float[4] b = {{1.0, 2.0, 3.0, 4.0}},
 float[B,S,4] q, float[B,S,4] k, float[B,S,4] v, float[B,S,4] qb> {{
{body}
  y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)
}}"""


SeparateProjections.examples = (
    Example(
        text=_text("  q = MatMul (x, wq)\n  k = MatMul (x, wk)\n  v = MatMul (x, wv)"), fires=1, emits={"Split": 1}
    ),
    Example(
        text=_text("  q = MatMul (other, wq)\n  k = MatMul (other, wk)\n  v = MatMul (other, wv)"),
        fires=1,
        emits={"Split": 1},
    ),
    Example(text=_text("  q = MatMul (x, wq)\n  k = MatMul (other, wk)\n  v = MatMul (x, wv)"), because="no-match"),
    Example(text=_text("  q = MatMul (x, wq)\n  k = MatMul (x, wq)\n  v = MatMul (x, wv)"), because="shared-weights"),
    Example(
        text=_text("  qb = MatMul (x, wq)\n  q = Add (qb, b)\n  k = MatMul (x, wk)\n  v = MatMul (x, wv)"),
        because="mixed-biases",
    ),
)
