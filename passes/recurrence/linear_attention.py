"""LIN101: the gated delta rule to com.microsoft LinearAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from .. import canonical_recurrence as recurrence
from ..canonical_recurrence import RecurrenceNode
from ..capability import F32, LINEAR, capability
from ..graph import Builder
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["LinearAttention"]


@dataclass(frozen=True, slots=True)
class Facts:
    """A linear attention with its sizes: heads N, key channels K, value channels V."""

    site: RecurrenceNode
    heads: int
    key_size: int
    value_size: int


class LinearAttention(Rule):
    """Linear attention as one operator.

    ## What it finds
    A canonical linear attention (gated delta rule): decay per head or per key channel, any sequence length, with or
    without a state from before.

    ## Why
    torch writes the recurrence in chunks of a fixed size, more than a thousand nodes for a layer, and bakes the
    number of chunks into the graph. One operator runs every length.

    ## Before -> After
    ``canonical::LinearAttention(q, k, v, decay, beta)`` -> ``com.microsoft::LinearAttention`` over
    (B, S, N * size) tensors with ``update_rule = "gated_delta"``.

    ## When it declines
    ``no-capability``, ``dtype``, ``dynamic-heads``.

    ## Numerics
    ROUNDING: the same recurrence, token by token, in float32.

    ## References
    onnxruntime, com.microsoft.LinearAttention.
    """

    code = "LIN101"
    name = "linear-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({f"deployml.canonical::{recurrence.NAME}"})
    emits = (LINEAR,)
    examples: tuple[Example, ...] = ()

    def examine(self, node: ir.Node, context: Context) -> Facts:
        target = context.target
        row = capability(LINEAR, target.name, target.onnxruntime)
        if row is None:
            version = ".".join(map(str, target.onnxruntime))
            raise Declined("no-capability", f"target {target.name} has no {LINEAR} in onnxruntime {version}", at=node)
        site = recurrence.read(node)
        if site.query.dtype not in row.dtypes:
            raise Declined("dtype", f"{LINEAR} has no kernel for {site.query.dtype} on target {target.name}", at=node)
        query, value = site.query.shape, site.value.shape
        sizes = (*(query or ())[2:], *(value or ())[3:])
        if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes):
            raise Declined("dynamic-heads", "the number of heads or their size is not fixed in the graph", at=node)
        return Facts(site, *(int(size) for size in sizes))  # type: ignore[arg-type]

    def build(self, facts: Facts, g: Builder) -> Replacement:
        site = facts.site
        flat = g.const(np.array([0, 0, -1], np.int64))
        batch, length = list(site.query.shape or ())[:2]

        def packed(value: ir.Value) -> ir.Value:
            return value if len(value.shape or ()) == 3 else g.op("Reshape", value, flat)

        output, present = g.op(
            LINEAR,
            packed(site.query),
            packed(site.key),
            packed(site.value),
            site.state,
            packed(site.decay),
            site.beta,
            outputs=2,
            dtype=site.query.dtype,
            shape=[batch, length, facts.heads * facts.value_size],
            q_num_heads=facts.heads,
            kv_num_heads=facts.heads,
            scale=site.scale,
            update_rule="gated_delta",
        )
        split = g.const(np.array([0, 0, facts.heads, facts.value_size], np.int64))
        shape = [batch, length, facts.heads, facts.value_size]
        made = g.op("Reshape", output, split, dtype=site.query.dtype, shape=shape)
        used = [o for o in site.node.outputs if o.uses() or o.is_graph_output()]
        present.dtype, present.shape = F32, ir.Shape([batch, facts.heads, facts.key_size, facts.value_size])
        both = dict(zip(site.node.outputs, (made, present), strict=False))
        return Replacement(old=used, new=[both[o] for o in used])


def _text(heads: int | str, *, dtype: str = "float", channels: bool = False) -> str:
    decay = f"B,S,{heads},8" if channels else f"B,S,{heads}"
    inputs = [
        *(f"{dtype}[B,S,{heads},8] {name}" for name in "qk"),
        f"{dtype}[B,S,{heads},6] v",
        f"{dtype}[{decay}] g",
        f"{dtype}[B,S,{heads}] b",
    ]
    return f"""<ir_version: 10, opset_import: ["" : 21, "deployml.canonical" : 1]>
g ({", ".join(inputs)}) => ({dtype}[B,S,{heads},6] y) {{
  [site] y = deployml.canonical.{recurrence.NAME} <scale = 0.25> (q, k, v, g, b)
}}"""


_ONE: Final = {LINEAR: 1}

LinearAttention.examples = (
    Example(text=_text(3), fires=1, emits=_ONE),
    Example(text=_text(2, channels=True), fires=1, emits=_ONE),
    Example(text=_text("N"), because="dynamic-heads"),
    Example(text=_text(2, dtype="double"), because="dtype"),
)
