"""Lowering of every linear attention, with its record in the journal."""

from __future__ import annotations

import time
from typing import Any

import onnx_ir as ir

from ...runtime.report import PassRecord
from ...runtime.report import Site as SiteRecord
from .. import canonical, canonical_recurrence
from ..capability import LINEAR, capability
from ..engine import Engine
from ..graph import dims, op_name
from .linear_attention import LinearAttention

__all__ = ["lower_recurrences"]

_RULE = LinearAttention()


def lower_recurrences(engine: Engine) -> None:
    """Lower every canonical linear attention and record its site; what is refused becomes a Scan."""
    model = engine.context.model
    nodes = [n for n in model.graph.all_nodes() if canonical_recurrence.is_recurrence(n)]
    start, before, fused = time.perf_counter(), model.graph.num_nodes(), 0
    for node in nodes:
        record = _lower(engine, node, len(engine.journal.sites))
        fused += record.status == "fused"
        engine.journal.sites.append(record)
    if not nodes:
        return
    model.graph.sort()
    engine.journal.passes.append(
        PassRecord(
            name="lower-recurrences",
            seconds=time.perf_counter() - start,
            rewrites=fused,
            nodes_before=before,
            nodes_after=model.graph.num_nodes(),
        )
    )


def _lower(engine: Engine, node: ir.Node, index: int) -> SiteRecord:
    common = _common(node, index)
    target = engine.context.target
    reason, detail = "disabled", f"switched off (--disable-fusion {_RULE.code})"
    if engine.enabled(_RULE):
        engine.refused = None
        applied = engine.attempt(_RULE, node)
        if applied is not None:
            made = next(n for n in applied.nodes if op_name(n) == LINEAR)
            row = capability(LINEAR, target.name, target.onnxruntime)
            return SiteRecord(
                name=str(made.name),
                status="fused",
                op=LINEAR,
                kernel="unknown" if row is None else row.kernel,
                rule=_RULE.code,
                error=applied.record.error,
                error_unfused=applied.record.error_unfused,
                granted=applied.record.granted,
                **common,
            )
        if engine.refused is not None:
            reason, detail = engine.refused.reason, engine.refused.detail
    output, *_ = canonical.replace_by_plain(node)
    scan = output.producer()
    name = str(scan.name if scan is not None else node.name)
    return SiteRecord(name=name, status="declined", reason=reason, detail=detail, nearest=_RULE.code, **common)


def _common(node: ir.Node, index: int) -> dict[str, Any]:
    site = canonical_recurrence.read(node)
    query, value = dims(site.query) or (None,) * 4, dims(site.value) or (None,) * 4
    decay = "per channel" if len(site.decay.shape or ()) == 4 else "per head"
    facts = {"kind": "gated delta rule", "heads": query[2], "head_dim": query[3], "value_dim": value[3], "decay": decay}
    return {
        "index": index,
        "module_path": node.metadata_props.get("deployml.module"),
        "source": node.metadata_props.get("deployml.source"),
        "origin": "recurrence",
        "facts": facts,
    }
