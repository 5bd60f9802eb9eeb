"""ATT020: an ai.onnx Attention that is already in the graph becomes a canonical site."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .. import canonical
from ..graph import Builder, attribute, dims
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["StandardSite"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The node and its head counts and sizes."""

    node: ir.Node
    heads: int
    kv_heads: int
    size: int
    value_size: int


class StandardSite(Rule):
    """The standard Attention operator, as opset-23 exports hold it.

    ## What it finds
    ai.onnx Attention over three- or four-dimensional tensors without a cache.

    ## Why
    onnxruntime's CPU kernel for it builds the full score matrix, and its masks are refused in some forms. As a
    canonical site it is lowered to the best operator of the target, like any other.

    ## Before -> After
    ``Attention(q, k, v, mask)`` -> ``canonical::Attention(q, k, v, mask)``

    ## When it declines
    ``already-best`` on target portable, ``cached`` when past or present are used, ``score-output`` when the
    score product is an output, ``unknown-heads``.

    ## Numerics
    ROUNDING.

    ## References
    ONNX operators, ai.onnx.Attention-23.
    """

    code = "ATT020"
    name = "standard-site"
    safety = Safety.ROUNDING
    anchors = frozenset({"Attention"})
    emits = (f"{canonical.DOMAIN}::{canonical.NAME}",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        if context.target.portable:
            raise Declined("already-best", "the standard operator is what this target takes", at=node)
        inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
        if any(v is not None for v in inputs[4:]):
            raise Declined("cached", "keys and values come from a cache, or lengths are given", at=node)
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            raise Declined("score-output", "more than the attention's result is read", at=node)
        query, key, value = inputs[:3]
        shapes = [dims(v) for v in (query, key, value)]
        if any(s is None or len(s) not in (3, 4) for s in shapes):
            raise Declined("unknown-heads", "the ranks of query, key and value are not known", at=node)
        if len(shapes[0] or ()) == 4:
            sizes = [shapes[0][1], shapes[1][1], shapes[0][3], shapes[2][3]]  # type: ignore[index]
        else:
            heads, kv_heads = attribute(node, "q_num_heads", 0), attribute(node, "kv_num_heads", 0)
            widths = [shapes[0][2], shapes[2][2]]  # type: ignore[index]
            if not heads or not kv_heads or not all(isinstance(w, int) for w in widths):
                raise Declined("unknown-heads", "head counts or widths are not fixed", at=node)
            sizes = [heads, kv_heads, int(widths[0]) // heads, int(widths[1]) // kv_heads]
        if not all(isinstance(s, int) for s in sizes):
            raise Declined("unknown-heads", f"head counts and sizes are {sizes}", at=node)
        return Facts(node, *(int(s) for s in sizes))  # type: ignore[arg-type]

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node = facts.node
        query, key, value = (v for v in node.inputs[:3] if v is not None)
        flat = len(dims(query) or ()) == 3
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if flat:
            query = _split(g, query, facts.heads, facts.size)
            key = _split(g, key, facts.kv_heads, facts.size)
            value = _split(g, value, facts.kv_heads, facts.value_size)
        boolean = mask is not None and mask.dtype == ir.DataType.BOOL
        assert query.shape is not None
        shape = [*list(query.shape)[:3], facts.value_size]
        inputs = [query, key, value, mask if boolean else None, None if boolean else mask]
        made = g.op(
            f"{canonical.DOMAIN}::{canonical.NAME}",
            *inputs,
            dtype=query.dtype,
            shape=shape,
            scale=attribute(node, "scale") or facts.size**-0.5,
            causal="upper_left" if attribute(node, "is_causal", 0) else "none",
            softcap=attribute(node, "softcap", 0.0) or None,
            empty_rows="zero",
            origin="op",
        )
        if flat:
            moved = g.op("Transpose", made, perm=[0, 2, 1, 3], shape=[shape[0], shape[2], shape[1], shape[3]])
            width = g.const(np.array([0, 0, facts.heads * facts.value_size], np.int64))
            made = g.op("Reshape", moved, width, dtype=query.dtype, shape=node.outputs[0].shape)
        return Replacement(old=[node.outputs[0]], new=[made])


def _split(g: Builder, value: ir.Value, heads: int, size: int) -> ir.Value:
    assert value.shape is not None
    batch, rows, _ = value.shape
    split = g.op("Reshape", value, g.const(np.array([0, 0, heads, size], np.int64)), shape=[batch, rows, heads, size])
    return g.op("Transpose", split, perm=[0, 2, 1, 3], shape=[batch, heads, rows, size])


def _text(inputs: str, call: str, result: str) -> str:
    return f"""<ir_version: 11, opset_import: ["" : 23]>
g ({inputs}) => (float[{result}] y) {{
  y = Attention {call}
}}"""


StandardSite.examples = (
    Example(
        text=_text("float[B,4,S,16] q, float[B,2,T,16] k, float[B,2,T,16] v", "<scale = 0.2> (q, k, v)", "B,4,S,16"),
        fires=1,
    ),
    Example(
        text=_text(
            "float[B,S,64] q, float[B,S,32] k, float[B,S,32] v",
            "<q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, v)",
            "B,S,64",
        ),
        fires=1,
    ),
    Example(
        text=_text(
            "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, float[B,4,P,16] pk",
            '<scale = 0.2> (q, k, v, "", pk, pk)'.replace('""', ""),
            "B,4,S,16",
        ),
        because="cached",
    ),
    Example(
        text=_text("float[B,N,S,16] q, float[B,N,T,16] k, float[B,N,T,16] v", "<scale = 0.2> (q, k, v)", "B,N,S,16"),
        because="unknown-heads",
    ),
)
