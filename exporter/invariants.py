"""What must hold for every graph before it is written. A breach is ours, never the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from ..passes.canonical import DOMAIN
from ..passes.graph import dims, op_name
from ..runtime.report import Site
from .bundle import without_weights

__all__ = ["Signature", "breaches", "checker_breach", "signature_of"]


@dataclass(frozen=True, slots=True)
class Signature:
    """A graph's contract with its callers: (name, dtype, shape) of inputs and outputs, in order."""

    inputs: tuple[tuple[str, str, tuple[int | str | None, ...] | None], ...]
    outputs: tuple[tuple[str, str, tuple[int | str | None, ...] | None], ...]


def signature_of(model: ir.Model) -> Signature:
    """The contract of a model, to be compared with what becomes of it."""
    return Signature(_described(model.graph.inputs), _described(model.graph.outputs))


def breaches(model: ir.Model, before: Signature, sites: Sequence[Site]) -> list[str]:
    """Sentences on each invariant that the finished graph breaks; empty when all hold.

    Args:
        model: The finished graph.
        before: The contract of the graph it was made from.
        sites: The sites that the passes reported.
    """
    return [*_interface(model, before), *_leftovers(model), *_missing_sites(model, sites)]


def checker_breach(model: ir.Model) -> str | None:
    """onnx's own verdict on a graph, in one line; None when it has nothing to say.

    Operators that onnxruntime registers under the standard's name are left out of it, and so are the weights.
    """
    light = without_weights(model)
    for node in light.graph.all_nodes():
        if node.domain == "" and node.op_type in _RUNTIME_ONLY:
            node.domain = "com.microsoft"
    light.graph.opset_imports.setdefault("com.microsoft", 1)
    try:
        onnx.checker.check_model(ir.to_proto(light))
    except onnx.checker.ValidationError as error:
        return f"onnx's checker refuses the graph: {' '.join(str(error).split())[:400]}"
    return None


#: What onnxruntime registers in the standard's domain though the standard does not have it.
_RUNTIME_ONLY = frozenset({"SimplifiedLayerNormalization"})


def _described(values: Sequence[ir.Value]) -> tuple[tuple[str, str, tuple[int | str | None, ...] | None], ...]:
    return tuple((str(v.name), str(v.dtype), dims(v)) for v in values)


def _interface(model: ir.Model, before: Signature) -> list[str]:
    after = signature_of(model)
    found = []
    for role, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        if [o[:2] for o in old] != [n[:2] for n in new]:
            found.append(f"the {role}s were {_text(old)} and are {_text(new)}")
            continue
        found += [
            f"{role} '{name}' had the shape {list(was)} and has {None if now is None else list(now)}"
            for (name, _, was), (_, _, now) in zip(old, new, strict=True)
            if was is not None and not _keeps(was, now)
        ]
    return found


def _keeps(was: Sequence[int | str | None], now: Sequence[int | str | None] | None) -> bool:
    """Whether every known dimension stayed as it was; one that was unknown may have been found out."""
    if now is None or len(was) != len(now):
        return False
    return all(a is None or a == b for a, b in zip(was, now, strict=True))


def _text(values: Sequence[tuple[str, str, object]]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype, _ in values) or "none"


def _leftovers(model: ir.Model) -> list[str]:
    graphs = [model.graph, *(f.graph for f in model.functions.values())]
    left = [str(n.name) for g in graphs for n in g.all_nodes() if n.domain == DOMAIN]
    return [f"canonical operators are left in the graph: {', '.join(left[:5])}"] if left else []


def _missing_sites(model: ir.Model, sites: Sequence[Site]) -> list[str]:
    there = {str(n.name): op_name(n) for n in model.graph.all_nodes()}
    return [
        f"attention site {site.index} was reported as {site.op} '{site.name}', the graph has {there.get(site.name)}"
        for site in sites
        if site.status == "fused" and there.get(site.name) != site.op
    ]
