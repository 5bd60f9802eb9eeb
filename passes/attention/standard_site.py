"""ATT020: an ai.onnx Attention that is already in the graph becomes a canonical site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..graph import Builder, attribute, dims
from ..rule import Context, Declined, Example
from .given import GivenSite, Parts, kept, past_and, scale_of, split_heads
from .multi_head_site import read_elsewhere

__all__ = ["StandardSite"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The node, its head counts and the size of a head of its query."""

    node: ir.Node
    heads: int
    kv_heads: int
    size: int


class StandardSite(GivenSite):
    """The standard Attention operator, as opset-23 exports hold it.

    ## What it finds
    ai.onnx Attention over three- or four-dimensional tensors, with a mask of any form and a past that is concatenated.

    ## Why
    onnxruntime's CPU kernel for it builds the full score matrix, and its masks are refused in some forms. As a
    canonical site it is lowered to the best operator of the target, like any other.

    ## Before -> After
    ``Attention(q, k, v, mask)`` -> ``canonical::Attention(q, k, v, mask)``

    ## When it declines
    ``already-best`` on target portable and where lowering gives the operator again, ``no-better-node`` where no other
    takes it, ``cached`` when the lengths of an outer cache are given, ``score-output`` when the score product is an
    output, ``unknown-heads``.

    ## Numerics
    ROUNDING.

    ## References
    ONNX operators, ai.onnx.Attention-23.
    """

    code = "ATT020"
    name = "standard-site"
    anchors = frozenset({"Attention"})

    def examine(self, node: ir.Node, context: Context) -> Facts:
        if context.target.portable:
            raise Declined("already-best", "the standard operator is what this target takes", at=node)
        facts: Facts = super().examine(node, context)
        return facts

    def read(self, node: ir.Node) -> Facts:
        inputs = [*node.inputs, *[None] * (7 - len(node.inputs))]
        if inputs[6] is not None or (inputs[4] is None) != (inputs[5] is None):
            raise Declined("cached", "keys and values come from an outer cache", at=node)
        if read_elsewhere(node, 3):
            raise Declined("score-output", "the scores are read as well", at=node)
        shapes = [dims(v) for v in inputs[:3]]
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
        return Facts(node, *(int(s) for s in sizes[:3]))  # type: ignore[arg-type]

    def parts(self, facts: Facts, g: Builder) -> Parts:
        node = facts.node
        query, key, value, mask, *past = [*node.inputs, *[None] * (6 - len(node.inputs))][:6]
        assert query is not None and key is not None and value is not None
        query, key = split_heads(g, query, facts.heads), split_heads(g, key, facts.kv_heads)
        key, value = past_and(g, past[0], key), past_and(g, past[1], split_heads(g, value, facts.kv_heads))
        boolean = mask is not None and mask.dtype == ir.DataType.BOOL
        causal = "none" if not attribute(node, "is_causal", 0) else "upper_left" if past[0] is None else "lower_right"
        return Parts(
            query=query,
            key=key,
            value=value,
            mask=mask if boolean else None,
            bias=None if boolean else mask,
            scale=scale_of(node, facts.size),
            causal=causal,
            softcap=float(attribute(node, "softcap", 0.0)),
            empty_rows="zero",
        )

    def extra(self, facts: Facts, parts: Parts, g: Builder) -> Sequence[tuple[ir.Value, ir.Value]]:
        return kept(g, facts.node, parts)


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
            "float[B,4,S,16] q, float[B,4,S,16] k, float[B,4,S,16] v, float[B,4,P,16] pk",
            "<scale = 0.2, is_causal = 1> (q, k, v, , pk, pk)",
            "B,4,S,16",
        ).replace("  y =", "  y, nk, nv ="),
        fires=1,
    ),
    Example(
        text=_text(
            "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, int64[B] n",
            "<scale = 0.2> (q, k, v, , , , n)",
            "B,4,S,16",
        ).replace('"" : 23', '"" : 24'),
        because="cached",
    ),
    Example(
        text=_text("float[B,N,S,16] q, float[B,N,T,16] k, float[B,N,T,16] v", "<scale = 0.2> (q, k, v)", "B,N,S,16"),
        because="unknown-heads",
    ),
)
