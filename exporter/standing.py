"""A model as it stands: its lock, read from the graph, and from its report where that fits."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir

from ..passes.attention.between import softmaxes
from ..passes.attention.present import is_whole
from ..passes.graph import census, op_name
from ..runtime.lock import CONSTANTS, Lock, LockedLatency, LockedParity, LockedSite, LockedValue
from ..runtime.report import Report, Site
from .beside import report_beside
from .invariants import signature_of
from .source_map import MODULE_KEY, SOURCE_KEY
from .wiring import Contents, attribute_texts, contents_of, wiring_of

__all__ = ["lock_of", "nan_weights", "plain_nodes"]

_MADE_WITH: Final = "deployml.with."
_PART: Final = re.compile(r"^(?:[^.\d]+\.)*?[^.\d]+\.\d+(?=\.|$)")
_DIGITS: Final = 16


def lock_of(path: Path, model: ir.Model, *, weights: bool = True) -> Lock:
    """Describe a model file.

    Args:
        path: The file; its report is looked for beside it.
        model: The same, read.
        weights: Whether to digest the weights, which reads them all.
    """
    report = report_beside(path)
    known, digests = signature_of(model), dict[int, bytes]()

    def contents(tensor: ir.TensorProtocol) -> bytes:
        if id(tensor) not in digests:  # the weights are read once, though two digests are made of them
            digests[id(tensor)] = contents_of(tensor)
        return digests[id(tensor)]

    return Lock(
        model=path.name,
        target=model.metadata_props.get("deployml.target") or (report.target if report is not None else None),
        opsets={domain or "ai.onnx": v for domain, v in sorted(model.graph.opset_imports.items())},
        ir_version=model.ir_version or 0,
        inputs=_values(known.inputs, leave_out=model.graph.initializers),
        outputs=_values(known.outputs),
        sites=_sites(model, report),
        census=census(model),
        weights=_digests(model, contents) if weights else {},
        wiring=wiring_of(model),
        computation=wiring_of(model, contents) if weights else None,
        versions=_versions(model),
        parity=_parity(report),
        latency=_latency(report),
    )


def nan_weights(model: ir.Model) -> list[str]:
    """Names of weights that hold a NaN."""
    found = []
    for value in _initializers(model):
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and np.isnan(tensor.numpy().astype("float32")).any():
            found.append(str(value.name))
    return found


def plain_nodes(softmax: ir.Node) -> int:
    """How many nodes compute an attention in plain operators: from the score product to the value product."""
    if softmax.op_type != "Softmax":
        return 1
    up, node = [softmax], softmax
    while node.op_type != "MatMul" and len(up) < 20:
        before = [p for v in node.inputs if v is not None for p in [v.producer()] if p is not None and _computed(p)]
        if not before:
            break
        node = next((p for p in before if _leads_to_product(p)), before[0])
        up.append(node)
    down, node = [], softmax
    while node.op_type != "MatMul" and len(down) < 20:
        users = [u.node for o in node.outputs for u in o.uses()]
        if not users:
            break
        down += [u for u in users if u.op_type == "IsNaN"]
        node = next((u for u in users if u.op_type != "IsNaN"), users[0])
        down.append(node)
    return len({id(n) for n in (*up, *down)})


def _computed(node: ir.Node) -> bool:
    return node.op_type != "Constant"


def _leads_to_product(node: ir.Node, steps: int = 8) -> bool:
    edge = [node]
    for _ in range(steps):
        if any(n.op_type == "MatMul" for n in edge):
            return True
        edge = [p for n in edge for v in n.inputs if v is not None for p in [v.producer()] if p is not None]
    return False


def _values(described: Iterable[tuple[str, str, object]], leave_out: Iterable[str] = ()) -> tuple[LockedValue, ...]:
    hidden = set(leave_out)
    return tuple(
        LockedValue(name=name, dtype=dtype.lower(), shape=shape)  # type: ignore[arg-type]
        for name, dtype, shape in described
        if name not in hidden
    )


def _sites(model: ir.Model, report: Report | None) -> tuple[LockedSite, ...]:
    """What the report tells, or else what the graph shows: fused nodes, and softmaxes that still attend."""
    if report is not None and (report.sites or "fusion" not in report.not_run):
        nodes = {str(n.name): n for n in model.graph.all_nodes()}
        return tuple(_reported(site, nodes.get(site.name)) for site in report.sites)
    attending = {id(n) for n in softmaxes(model.graph)}
    found = []
    for node in model.graph.all_nodes():
        if is_whole(node):
            attributes = attribute_texts(node)
            found.append(LockedSite(status="fused", op=op_name(node), attributes=attributes, **_place(node)))
        elif id(node) in attending:
            found.append(LockedSite(status="declined", nodes=plain_nodes(node), **_place(node)))
    return tuple(found)


def _place(node: ir.Node) -> dict[str, str | None]:
    props = node.metadata_props
    return {"where": props.get(MODULE_KEY) or str(node.name), "source": props.get(SOURCE_KEY)}


def _reported(site: Site, node: ir.Node | None) -> LockedSite:
    fused = site.status == "fused"
    return LockedSite(
        where=site.module_path or site.name,
        status=site.status,
        op=site.op,
        nodes=1 if fused or node is None else plain_nodes(node),
        kernel=site.kernel,
        rule=site.rule or site.nearest,
        reason=site.reason,
        detail=site.detail,
        source=site.source,
        attributes={} if not fused or node is None else attribute_texts(node),
    )


def _initializers(model: ir.Model) -> list[ir.Value]:
    return [v for graph in model.graphs() for v in graph.initializers.values()]


def _digests(model: ir.Model, contents: Contents) -> dict[str, str]:
    """Part of the model to a digest of its weights' contents, whatever they are called and stored like."""
    parts: dict[str, list[bytes]] = {}
    for value in _initializers(model):
        if value.const_value is not None:
            parts.setdefault(_part(str(value.name)), []).append(contents(value.const_value))
    return {
        name: hashlib.sha256(b"".join(sorted(found))).hexdigest()[:_DIGITS] for name, found in sorted(parts.items())
    }


def _part(name: str) -> str:
    """The layer a weight belongs to: "encoder.layer.3" of "encoder.layer.3.output.dense.weight"."""
    layer = _PART.match(name)
    if layer is not None and name.count(".") > layer[0].count("."):
        return layer[0]
    return name.split(".")[0] if "." in name and name.rsplit(".", 1)[1] in ("weight", "bias") else CONSTANTS


def _versions(model: ir.Model) -> Mapping[str, str]:
    props = model.metadata_props
    found = {k.removeprefix(_MADE_WITH): v for k, v in props.items() if k.startswith(_MADE_WITH)}
    if props.get("deployml.version"):
        found["deployml"] = props["deployml.version"]
    return dict(sorted(found.items()))


def _parity(report: Report | None) -> LockedParity | None:
    if report is None or report.parity is None or report.parity.worst is None:
        return None
    worst = report.parity.worst
    return LockedParity(reference=report.parity.reference, needed=worst.needed, granted=worst.granted)


def _latency(report: Report | None) -> LockedLatency | None:
    ratios = () if report is None or report.latency is None else report.latency.ratios
    found = next((r for r in ratios if r.of == "unfused"), None)
    return None if found is None else LockedLatency(ratio=found.value, low=found.low, high=found.high)
