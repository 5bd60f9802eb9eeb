"""Lowering: each canonical attention goes to the best node the target has, or is declined by name."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import onnx_ir as ir

from ...custom_ops import built_for
from ...runtime.report import Decline, PassRecord
from ...runtime.report import Site as SiteRecord
from ...runtime.target import Target
from .. import canonical
from ..bodies import add_bodies
from ..capability import capability
from ..engine import Engine
from ..graph import assumed, op_name
from ..rule import Declined, Rule
from .between import softmaxes
from .costs import costs_of
from .group_query import GroupQuery
from .layer_scores import layer_scored, note_on
from .multi_head import MultiHead
from .other_weights import other_weights
from .own import OwnAttention
from .shared_scores import shared_scores
from .site import Site, describe, study
from .standard import Standard

__all__ = ["LOWERINGS", "NEEDS_OWN_OP", "best_first", "lower_attention", "record_unrecognised"]

#: The lowerings of each target, best first among those whose kernel is alike.
LOWERINGS: Final[Mapping[str, Sequence[Rule]]] = {
    "cpu": (GroupQuery(), MultiHead(), OwnAttention(), Standard()),
    "cuda": (GroupQuery(), MultiHead(), Standard(), OwnAttention()),
    "rocm": (GroupQuery(), MultiHead(), OwnAttention()),
    "portable": (Standard(),),
}

#: Reasons that say the operator lacks a feature; where all lowerings say so, only an own op could hold the site.
NEEDS_OWN_OP: Final = frozenset(
    {"softcap", "sink", "weights-output", "unequal-value-size", "mask-and-bias", "causal-lower-right", "head-size"}
)
#: Reasons that say "not this operator, another": they never name the site's trouble while another is known.
_PASSING: Final = frozenset({"not-causal", "cross-attention", "opset-too-old", "no-capability", "grouped-heads"})

#: Rules that say why a softmax was not understood, the most telling last.
_RECOGNISING: Final = ("ATT004", "ATT003", "ATT001")


def lower_attention(engine: Engine) -> None:
    """Lower every canonical attention of the model and record its site."""
    start = time.perf_counter()
    engine.stage = "lower-attention"
    model = engine.context.model
    before = model.graph.num_nodes()
    nodes = [n for n in model.graph.all_nodes() if canonical.is_attention(n)]
    for node in nodes:
        _shaped(node)
        engine.journal.sites.append(_lower(engine, node, len(engine.journal.sites)))
    add_bodies(model)
    model.graph.sort()
    fused = sum(s.status == "fused" for s in engine.journal.sites)
    engine.steps.tell(model, engine.stage)
    after = model.graph.num_nodes()
    engine.journal.passes.append(
        PassRecord(
            name="lower-attention",
            seconds=time.perf_counter() - start,
            rewrites=fused,
            nodes_before=before,
            nodes_after=after,
        )
    )


def _shaped(node: ir.Node) -> None:
    """Give a result without a shape the one its operands say."""
    site = canonical.read(node)
    query, value = site.query.shape, site.value.shape
    if site.output.shape is None and query is not None and value is not None and len(query) == len(value) == 4:
        site.output.shape = ir.Shape([*list(query)[:3], value[3]])


def _lower(engine: Engine, node: ir.Node, index: int) -> SiteRecord:
    common: dict[str, Any] = {
        "index": index,
        "module_path": node.metadata_props.get("deployml.module"),
        "source": node.metadata_props.get("deployml.source"),
        "origin": canonical.read(node).origin,
    }
    kinds, refusals, site = frozenset[str](), [], None
    try:
        site = study(node)
        common["facts"], kinds = describe(site), site.kinds()
    except Declined as no:
        refusals.append(Decline(rule="ATT100", at=str(node.name), reason=no.reason, detail=no.detail))
    target = engine.context.target
    for rule in best_first(target, kinds, site):
        if refusals and refusals[0].rule == "ATT100":
            break
        if not engine.enabled(rule):
            at, code = str(node.name), rule.code
            off = Decline(rule=code, at=at, reason="disabled", detail=f"switched off (--disable-fusion {code})")
            refusals.append(off)
            continue
        engine.refused = None
        applied = engine.attempt(rule, node)
        if applied is None:
            if engine.refused is not None:
                refusals.append(engine.refused)
            continue
        made = next(n for n in applied.nodes if op_name(n) in rule.emits)
        row = capability(rule.emits[0], target.name, target.onnxruntime)
        record = applied.record
        return SiteRecord(
            name=str(made.name),
            status="fused",
            op=op_name(made),
            kernel=row.kernel_for(kinds) if row is not None else "unknown",
            rule=rule.code,
            error=record.error,
            error_unfused=record.error_unfused,
            granted=record.granted,
            assumptions=tuple(sorted({*record.assumptions, *assumed(node)})),
            **common,
        )
    if not refusals:
        detail = "no lowering of this target took the site, and none said why"
        refusals.append(Decline(rule="ATT100", at=str(node.name), reason="not-lowered", detail=detail))
    return _declined(node, refusals, common)


def best_first(target: Target, kinds: frozenset[str], site: Site | None) -> list[Rule]:
    """The target's lowerings, the one to try first first.

    With ``fusion="auto"`` those that were measured for such a site, the fastest first. Then, and for everything with
    ``fusion="always"``, tiled kernels before those that build the score matrix. Sites that share key/value heads go
    to GroupQueryAttention: it is what decoders with a cache run, and one operator for both phases is worth more.

    On a GPU no number speaks for the own operator yet. It is asked only where its library for that GPU was built, and
    stands before those of onnxruntime only for half precision whose flash kernel they lose.
    """
    rules = [r for r in LOWERINGS[target.name] if r.code != OwnAttention.code or built_for(target.name)]
    costs = costs_of(site, target) if site is not None and target.fusion == "auto" else {}

    def order(rule: Rule) -> tuple[float, bool, bool]:
        row = capability(rule.emits[0], target.name, target.onnxruntime)
        naive = row is None or row.kernel_for(kinds) == "naive"
        if rule.code == OwnAttention.code and target.name != "cpu":
            naive = "float32" in kinds
        outdone = target.name == "cpu" and rule.code == GroupQuery.code and "grouped" not in kinds
        return costs.get(rule.emits[0], math.inf), naive, outdone

    return sorted(rules, key=order)


def _declined(node: ir.Node, refusals: Sequence[Decline], common: dict[str, Any]) -> SiteRecord:
    weights = canonical.replace_by_plain(node, shared_scores)[1]
    nearest = _nearest(refusals)
    softmax = _softmax_of(weights)
    reasons = {r.reason for r in refusals} - _PASSING
    lacks_feature = bool(reasons) and reasons <= NEEDS_OWN_OP
    return SiteRecord(
        name=str(softmax.name if softmax is not None else node.name),
        status="declined",
        reason="needs-custom-op" if lacks_feature else nearest.reason,
        detail=f"{nearest.detail} ({nearest.reason})" if lacks_feature else nearest.detail,
        nearest=nearest.rule,
        assumptions=assumed(node),
        **common,
    )


def _softmax_of(weights: ir.Value) -> ir.Node | None:
    """The Softmax that plain attention weights come from, behind a guard of empty rows or the cut of a sink."""
    node = weights.producer()
    while node is not None and node.op_type in ("Where", "Slice"):
        before = node.inputs[2 if node.op_type == "Where" else 0]
        node = None if before is None else before.producer()
    return node


def _nearest(refusals: Sequence[Decline]) -> Decline:
    """The refusal that says most: a failed proof, then a missing feature, then the rest."""

    def weight(refusal: Decline) -> int:
        if refusal.rolled_back:
            return 0
        return 2 if refusal.reason in _PASSING else 1

    return min(refusals, key=weight)


def record_unrecognised(engine: Engine) -> None:
    """Record a declined site for every softmax that still attends in plain nodes, and for weights of another kind.

    A softmax over scores of a layer, which no operator fuses and no ``--require-fused`` should ask for, is a note.
    """
    known = {s.name for s in engine.journal.sites}
    said = {d.at: d for rule in _RECOGNISING for d in engine.journal.declines if d.rule == rule}
    graph = engine.context.model.graph
    attending = list(softmaxes(graph))
    unseen = [(n, said.get(str(n.name), _unseen(n))) for n in attending]
    unseen += [(n, _no_softmax(n)) for n in other_weights(graph, attending)]
    note = note_on(layer_scored(graph, attending))
    if note is not None:
        engine.journal.notes.append(note)
    for node, refusal in unseen:
        if node.name in known:
            continue
        engine.journal.sites.append(
            SiteRecord(
                index=len(engine.journal.sites),
                name=str(node.name),
                status="declined",
                reason=refusal.reason,
                detail=refusal.detail,
                nearest=refusal.rule,
                module_path=node.metadata_props.get("deployml.module"),
                source=node.metadata_props.get("deployml.source"),
                assumptions=assumed(node),
                origin="softmax",
            )
        )


def _unseen(node: ir.Node) -> Decline:
    return Decline(
        rule="ATT001", at=str(node.name), reason="not-recognised", detail="no rule understands this form of softmax"
    )


def _no_softmax(node: ir.Node) -> Decline:
    detail = f"the weights are {node.op_type} of the scores; fused operators know a softmax over the keys alone"
    if op_name(node) == "Exp":
        detail = "exponentials of the scores weigh the values before or without a division by their sum over all keys"
    return Decline(rule="ATT001", at=str(node.name), reason="no-softmax", detail=detail)
