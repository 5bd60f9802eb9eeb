"""ATT112: query, key and value read from the one tensor they are parts of."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import onnx_ir as ir

from ...custom_ops import DOMAIN
from ...custom_ops.flash_attention import ATTRIBUTES, Attributes, Signature
from ..graph import Builder, attribute, dims, producer
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .own import OWN, OwnAttention

__all__ = ["OneTensor"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The attention node, its signature with the layout it gets, and the tensor before the Split."""

    node: ir.Node
    signature: Signature
    packed: ir.Value


class OneTensor(Rule):
    """A Split of one projection into query, key and value right before the project's own attention.

    ## What it finds
    A deployml::FlashAttention over (B, S, N * H) tensors that are the three parts of one Split, in the order query,
    key, value, with one head size, which nothing else reads.

    ## Why
    The kernel reads rows where they lie: the Split only copies them. One node and one pass over query, key and value
    fewer in every layer.

    ## Before -> After
    ``FlashAttention_mask(*Split(x), mask)`` -> ``FlashAttention_packed_mask(x, mask)``

    ## When it declines
    ``other-readers`` (a part is read elsewhere too), ``unequal-heads`` (the parts are not heads of one size),
    ``with-weights`` (the operator returns weights for separate tensors only), otherwise there is nothing to find.

    ## Numerics
    EXACT: the same numbers in the same order.

    ## References
    Dao, FlashAttention-2, 2023 (the packed interface of its implementation).
    """

    code = "ATT112"
    name = "one-tensor"
    safety = Safety.EXACT
    anchors = frozenset(OwnAttention.emits)
    emits = tuple(
        f"{DOMAIN}::{Signature(layout='packed', mask=mask, bias=bias, table=table, sink=sink).op_type}"
        for sink in (False, True)
        for table in (False, True)
        for bias in (False, True)
        for mask in (False, True)
    )

    def examine(self, node: ir.Node, context: Context) -> Facts:
        parts = [v for v in node.inputs[:3] if v is not None]
        split = producer(parts[0], "Split")
        if split is None or [id(v) for v in split.outputs] != [id(v) for v in parts]:
            raise Declined("no-match", "query, key and value are not the parts of one tensor")
        packed = split.inputs[0]
        if packed is None or len(dims(packed) or ()) != 3 or attribute(split, "axis", 0) not in (-1, 2):
            raise Declined("no-match", "the parts are not cut from the last of three axes")
        if any(len(v.uses()) != 1 or v.is_graph_output() for v in parts):
            raise Declined("other-readers", "query, key or value has other readers", at=node)
        signature = Signature.of(node.op_type)
        if signature.weights:
            raise Declined("with-weights", "weights come out beside the result", at=node)
        _same_head_size(node, parts)
        return Facts(node, _packed(signature), packed)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node = facts.node
        attributes = Attributes(**{name: attribute(node, name) for name in ATTRIBUTES})
        made = g.op(
            f"{DOMAIN}::{facts.signature.op_type}",
            facts.packed,
            *node.inputs[3:],
            dtype=node.outputs[0].dtype,
            shape=node.outputs[0].shape,
            **asdict(attributes),
        )
        g.keep_name(node)
        return Replacement(old=[node.outputs[0]], new=[made])


def _packed(s: Signature) -> Signature:
    return Signature(layout="packed", mask=s.mask, bias=s.bias, table=s.table, sink=s.sink)


def _same_head_size(node: ir.Node, parts: list[ir.Value]) -> None:
    """Refuse unless every part is its number of heads of one and the same size."""
    heads, kv_heads = attribute(node, "num_heads", 0), attribute(node, "kv_heads", 0)
    widths = [(dims(v) or (None,))[-1] for v in parts]
    sizes = {
        divmod(width, count) if isinstance(width, int) and count else None
        for width, count in zip(widths, (heads, kv_heads, kv_heads), strict=True)
    }
    if len(sizes) != 1 or None in sizes or next(iter(sizes))[1]:  # type: ignore[index]
        raise Declined("unequal-heads", f"parts of {widths} elements are not heads of one size", at=node)


def _text(widths: str, body: str = "", *, op: str = "FlashAttention", outputs: str = "y", more: str = "") -> str:
    options = (
        "num_heads = 4, kv_heads = 2, scale = 0.0, causal = 0, lower_right = 0, "
        "window_left = -1, window_right = -1, softcap = 0.0"
    )
    return f"""<ir_version: 10, opset_import: ["" : 20, "deployml" : 1]>
g (float[B,S,64] x, bool[B,1,1,S] m) => ({more}float[B,S,32] y)
<int64[3] widths = {{{widths}}}, float[B,S,32] q, float[B,S,16] k, float[B,S,16] v> {{
  q, k, v = Split <axis = 2> (x, widths)
  {outputs} = deployml.{op} <{options}> (q, k, v{", m" if "mask" in op else ""})
{body}
}}"""


OneTensor.examples = (
    Example(text=_text("32, 16, 16"), fires=1, emits={f"{OWN}_packed": 1}),
    Example(text=_text("32, 16, 16", op="FlashAttention_mask"), fires=1, emits={f"{OWN}_packed_mask": 1}),
    Example(text=_text("32, 16, 16", "  z = Neg (q)", more="float[B,S,32] z, "), because="other-readers"),
    Example(
        text=_text("32, 16, 16", op="FlashAttention_weights", outputs="y, w", more="float[B,4,S,S] w, "),
        because="with-weights",
    ),
    Example(text=_text("32, 16, 16").replace("kv_heads = 2", "kv_heads = 1"), because="unequal-heads"),
    Example(text=_text("32, 16, 16").replace("(q, k, v)", "(q, v, k)"), because="no-match"),
)
