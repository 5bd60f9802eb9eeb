"""Attention nodes that were in the graph before any rule ran and stay: fused sites by another hand."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from ... import custom_ops
from ...runtime.report import Site
from ..capability import OWN, capability
from ..engine import Engine
from ..graph import assumed, attribute, op_name

__all__ = ["is_whole", "present_attention", "record_present"]

#: Operators of others that hold a whole attention.
_ATTENTION: Final = frozenset(
    {
        "Attention",
        "com.microsoft::Attention",
        "com.microsoft::MultiHeadAttention",
        "com.microsoft::GroupQueryAttention",
        "com.microsoft::PackedMultiHeadAttention",
        "com.microsoft::PackedAttention",
        "com.microsoft::DecoderAttention",
        "com.microsoft::DecoderMaskedMultiHeadAttention",
        "com.microsoft::DecoderMaskedSelfAttention",
        "com.microsoft::LongformerAttention",
        "com.microsoft::PagedAttention",
        "com.microsoft::SparseAttention",
        "com.microsoft::QAttention",
    }
)

#: Rules that read such nodes as sites to lower anew.
_SITES: Final = frozenset({"ATT020", "ATT021", "ATT022", "ATT023"})


def is_whole(node: ir.Node) -> bool:
    """Whether a node is an attention, whoever made it: deployml's own operators, onnxruntime's or the standard's."""
    own = node.domain == custom_ops.DOMAIN and "Attention" in node.op_type
    return own or op_name(node) in _ATTENTION


def present_attention(model: ir.Model) -> list[ir.Node]:
    """The attention nodes of a graph, in order."""
    return [n for n in model.graph.all_nodes() if is_whole(n)]


def record_present(engine: Engine, before: list[ir.Node]) -> None:
    """Record a fused site for each node of ``before`` that is still in the graph, and why it was kept."""
    target = engine.context.target
    kept = {d.at: f"{d.reason}: {d.detail}" for d in engine.journal.declines if d.rule in _SITES}
    for node in before:
        if node.graph is None:
            continue
        op = OWN if node.domain == custom_ops.DOMAIN else op_name(node)
        row = capability(op, target.name, target.onnxruntime)
        heads = attribute(node, "num_heads") or attribute(node, "q_num_heads")
        shared = attribute(node, "kv_num_heads")
        engine.journal.sites.append(
            Site(
                index=len(engine.journal.sites),
                name=str(node.name),
                status="fused",
                op=op_name(node),
                kernel="unknown" if row is None or len(node.inputs) > 3 else row.kernel,
                detail=f"was one node already ({kept[str(node.name)]})"
                if node.name in kept
                else "was one node already",
                module_path=node.metadata_props.get("deployml.module"),
                source=node.metadata_props.get("deployml.source"),
                assumptions=assumed(node),
                origin="op",
                facts={k: v for k, v in (("heads", heads), ("kv_heads", shared or heads)) if v},
            )
        )
