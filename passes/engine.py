"""Applies rules to a model, each rewrite a transaction: examine, build, prove, then commit or undo."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ..runtime.report import Decline, PassRecord, Rewrite
from .cycles import closes_cycle
from .graph import Builder, assume, op_name, remove_dead
from .journal import Journal
from .proof import Proof, Prover
from .rule import Context, Declined, Replacement, Rule
from .scopes import Scopes
from .steps import Steps

__all__ = ["Applied", "Engine"]

#: Rounds of a rule set over the graph before it counts as not settling.
ROUNDS = 12


@dataclass(frozen=True, slots=True)
class Applied:
    """A committed rewrite: its record and the nodes it put into the graph."""

    record: Rewrite
    nodes: tuple[ir.Node, ...]


class Engine:
    """Runs rule sets over one model.

    Args:
        context: The model and the target.
        prover: Proves each rewrite.
        journal: Receives what happened.
        disabled: Codes and names of rules that must not run.
        steps: Hears of every rewrite.
    """

    def __init__(
        self,
        context: Context,
        prover: Prover,
        journal: Journal,
        *,
        disabled: Iterable[str] = (),
        steps: Steps | None = None,
    ) -> None:
        self.context = context
        self.prover = prover
        self.journal = journal
        self.disabled = frozenset(disabled)
        self.steps = steps or Steps()
        #: Name of the pass that is running.
        self.stage = ""
        self._declined: set[tuple[str, str, str]] = set()
        self._failed: dict[tuple[str, int], ir.Node] = {}  # the node is held, so that its id stays its own
        self.scopes = Scopes(context.model.graph)
        #: The latest refusal, also one that was journalled before.
        self.refused: Decline | None = None

    def enabled(self, rule: Rule) -> bool:
        """Whether the user left a rule on."""
        return rule.code not in self.disabled and rule.name not in self.disabled

    def run(self, name: str, rules: Sequence[Rule]) -> int:
        """Apply a set of rules until none fires, and record the pass. Returns the number of rewrites."""
        start, before = time.perf_counter(), self.context.model.graph.num_nodes()
        self.stage = name
        total = 0
        for _ in range(ROUNDS):
            fired = sum(self._sweep(rule) for rule in rules if self.enabled(rule))
            total += fired
            if not fired:
                break
        if total:
            self.context.model.graph.sort()
        self.journal.passes.append(
            PassRecord(
                name=name,
                seconds=time.perf_counter() - start,
                rewrites=total,
                nodes_before=before,
                nodes_after=self.context.model.graph.num_nodes(),
            )
        )
        return total

    def _sweep(self, rule: Rule) -> int:
        fired = 0
        self.scopes = Scopes(self.context.model.graph)
        for graph in self.scopes.graphs:
            for node in list(rule.matches(graph)):
                if node.graph is not None and self.attempt(rule, node) is not None:
                    fired += 1
        return fired

    def attempt(self, rule: Rule, node: ir.Node) -> Applied | None:
        """Try one rule on one node. Returns what was applied, or None after a decline."""
        name = node.name or op_name(node)
        if (rule.code, id(node)) in self._failed:
            return None
        self.journal.attempts[rule.code] += 1
        graph = node.graph
        assert graph is not None
        g = Builder(graph, prefix=rule.name, like=node, root=self.context.model.graph)
        try:
            replacement = rule.build(rule.examine(node, self.context), g)
            if not self.scopes.fits(g, replacement.old, replacement.new, graph):
                raise Declined(
                    "across-bodies", "the rewrite would reach across the body of an If, Loop or Scan", at=node
                )
            if closes_cycle(replacement.old, replacement.new, g.nodes):
                raise Declined("own-result", "the new node would read what is computed from its own result", at=node)
        except Declined as no:
            g.discard()
            self._decline(rule, node, no)
            return None
        except Exception as error:  # a rule must not bring down the run on a graph it does not fit
            g.discard()
            self._failed[rule.code, id(node)] = node
            detail = f"the rule failed: {type(error).__name__}: {error}"
            self._journal(Decline(rule=rule.code, at=name, reason="rule-error", detail=detail, rolled_back=True))
            return None
        proof = self.prover.prove(replacement, g, rule.safety)
        if not proof.ok:
            g.discard()
            self._roll_back(rule, node, proof)
            return None
        replaced = tuple((str(a.name), str(b.name)) for a, b in zip(replacement.old, replacement.new, strict=True))
        self._commit(replacement, g, node)
        record = Rewrite(
            rule=rule.code,
            at=name,
            emits=", ".join(sorted({op_name(n) for n in g.nodes if op_name(n) in rule.emits})) or "-",
            error=proof.error,
            error_unfused=proof.error_unfused,
            granted=proof.granted,
            proof="cached" if proof.method == "cached" else "executed",
            assumptions=tuple(sorted({*proof.assumptions, *replacement.always})),
        )
        self.journal.rewrites.append(record)
        for made in g.nodes if record.assumptions else ():
            assume(made, record.assumptions)
        built = tuple(str(n.name) for n in g.nodes)
        self.steps.tell(self.context.model, self.stage, rule=rule.code, at=name, nodes=built, values=replaced)
        return Applied(record, tuple(g.nodes))

    def _commit(self, replacement: Replacement, g: Builder, anchor: ir.Node) -> None:
        imports = self.context.model.graph.opset_imports
        for built in g.nodes:
            imports.setdefault(built.domain, 1)
        g.insert_before(anchor)
        roots = [p for v in replacement.old if (p := v.producer()) is not None]
        for old, new in zip(replacement.old, replacement.new, strict=True):
            if old is not new:
                g.take_over(old, new)
        remove_dead(roots)

    def _decline(self, rule: Rule, node: ir.Node, no: Declined) -> None:
        at = node.name or op_name(node)
        if no.reason == "no-match":
            return
        self._journal(Decline(rule=rule.code, at=at, reason=no.reason, detail=no.detail))

    def _roll_back(self, rule: Rule, node: ir.Node, proof: Proof) -> None:
        self._failed[rule.code, id(node)] = node
        reason = "not-proven" if proof.method == "not-run" else "not-equal"
        at = node.name or op_name(node)
        self._journal(Decline(rule=rule.code, at=at, reason=reason, detail=proof.detail, rolled_back=True))

    def _journal(self, decline: Decline) -> None:
        """Record a refusal once; a rule that looks again at the same node says the same again."""
        self.refused = decline
        key = (decline.rule, decline.at, decline.reason)
        if key not in self._declined:
            self._declined.add(key)
            self.journal.declines.append(decline)
