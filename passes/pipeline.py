"""The pipeline: which passes run, in which order. Read it top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from .. import custom_ops
from ..runtime.report import PassRecord
from ..runtime.target import Target
from . import activations, attention, canonical, experts, layout, norms, recurrence, rotary
from .bodies import add_bodies
from .cleanup import deduplicate, fold, infer_shapes, pack_weights, simplify
from .cleanup.infer import forget_names, merged
from .engine import Engine
from .evaluate import Configure, Evaluator
from .journal import Journal
from .proof import Prover
from .rule import Context
from .steps import Steps, Watch
from .whole import difference

__all__ = ["Options", "Outcome", "StageHook", "baseline", "run"]

StageHook = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a pipeline run may do.

    Attributes:
        fuse_attention: Whether attention sites are fused; off, they become plain operators again.
        disabled: Codes or names of rules that must not run.
        simplify: Whether onnxsim runs at the end (in a process of its own).
    """

    fuse_attention: bool = True
    disabled: tuple[str, ...] = ()
    simplify: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run gives back: the fused model (the one given, or its simplified successor) and the journal."""

    model: ir.Model
    journal: Journal


def run(
    model: ir.Model,
    target: Target,
    *,
    options: Options | None = None,
    configure: Configure | None = None,
    stage: StageHook | None = None,
    watch: Watch | None = None,
) -> Outcome:
    """Fuse a model. The model given is consumed: use the one in the outcome.

    Args:
        model: The model, with attention calls as canonical nodes where they were captured.
        target: What it must run on.
        options: What may be done.
        configure: Registers op libraries on the session options of proofs.
        stage: Makes a context manager for each stage, for progress display.
        watch: Called after each change of the model; see :mod:`.steps`.

    Returns:
        The model and its journal: every site, rewrite, decline and pass.
    """
    options = options or Options()
    hook: StageHook = stage or (lambda _: nullcontext())
    journal, steps = Journal(), Steps(watch)
    declared = [value.shape for value in model.graph.outputs]
    whole = _Whole(Evaluator(configure), journal, steps)
    with hook("prepare"):
        whole.timed("name-nodes", model, common.NameFixPass())  # sites and refusals are told apart by name
        model = whole.inline(model)
        model = whole.fold(model)
        whole.timed("infer-shapes", model, infer_shapes)
        whole.timed("dedupe", model, deduplicate)
    prover = Prover(model, whole.evaluator)
    engine = Engine(Context(model, target), prover, journal, disabled=options.disabled, steps=steps)
    with hook("recognise"):
        present = attention.present_attention(model)
        if options.fuse_attention:  # transposes meet before and after: recognition reads through few of them
            engine.run("recognise-attention", (*layout.RULES, *attention.RECOGNISE, *layout.RULES))
        engine.run("norms", norms.RULES)
        add_bodies(model)
        engine.run("rotary", rotary.RULES)
    with hook("lower"):
        if options.fuse_attention:
            attention.lower_attention(engine)
            recurrence.lower_recurrences(engine)
            attention.record_present(engine, present)
            attention.record_unrecognised(engine)
        else:
            canonical.expand_all(model)
            steps.tell(model, "expand-attention")
        whole.timed("infer-shapes", model, infer_shapes)
        engine.run("layout", layout.RULES)
        whole.timed("dedupe", model, deduplicate)
    with hook("neighbours"):
        if options.fuse_attention:
            experts.join_experts(engine)
        engine.run("activations", activations.RULES)
        if options.fuse_attention:
            experts.lower_experts(engine)
        attention.refine_attention(engine)
        engine.run("layout", layout.RULES)
    with hook("clean up"):
        whole.timed("pack-weights", model, pack_weights)
        model = whole.fold(model)
        if options.simplify:
            model = whole.simplify(model)
        whole.timed("dedupe", model, deduplicate)
        whole.timed("infer-shapes", model, infer_shapes)
    _declare(model, declared)
    return Outcome(model, journal)


def _declare(model: ir.Model, declared: Sequence[ir.Shape | None]) -> None:
    """Let outputs say the dimensions their model declared: a rewrite may have found other names for them."""
    for value, shape in zip(model.graph.outputs, declared, strict=True):
        if shape is not None:
            value.shape = merged(shape, value.shape)


def baseline(model: ir.Model) -> ir.Model:
    """The unfused sibling: a copy with every canonical attention as plain operators.

    Constants are folded as any exporter would; weights are shared with the model that was given.
    """
    plain = model.clone()
    canonical.expand_all(plain)
    fold(plain)
    infer_shapes(plain)
    deduplicate(plain)
    return plain


class _Whole:
    """Runs passes over whole graphs, records them, and keeps a result only when it computes the same."""

    def __init__(self, evaluator: Evaluator, journal: Journal, steps: Steps) -> None:
        self.evaluator = evaluator
        self.journal = journal
        self.steps = steps

    def timed(self, name: str, model: ir.Model, work: Callable[[ir.Model], Any]) -> None:
        """Run a pass that changes no value (shapes, duplicates, dead nodes)."""
        start, before = time.perf_counter(), model.graph.num_nodes()
        work(model)
        self._record(name, start, before, model, None)

    def inline(self, model: ir.Model) -> ir.Model:
        """Inline local functions other than those of own operators, so that attention inside them is seen."""
        foreign = [f for f in model.functions.values() if f.domain != custom_ops.DOMAIN]
        if foreign:
            start, before = time.perf_counter(), model.graph.num_nodes()
            for function in foreign:
                forget_names(function)
            common.InlinePass(criteria=lambda f: f.domain != custom_ops.DOMAIN)(model)
            self._record("inline", start, before, model, None)
        return model

    def fold(self, model: ir.Model) -> ir.Model:
        """Fold constants; undone when an output differs."""
        start, before = time.perf_counter(), model.graph.num_nodes()
        kept = model.clone()
        fold(model)
        note = difference(kept, model, self.evaluator) if model.graph.num_nodes() != before else None
        if note is not None and not note.startswith("not run"):
            model, note = kept, f"undone: {note}"
        self._record("fold-constants", start, before, model, note)
        return model

    def simplify(self, model: ir.Model) -> ir.Model:
        """Let onnxsim simplify; its result is taken only when it is smaller and computes the same."""
        start, before = time.perf_counter(), model.graph.num_nodes()
        simplified, note = simplify(model)
        if simplified is not model:
            if simplified.graph.num_nodes() >= before:
                simplified, note = model, "onnxsim found nothing more"
            else:
                problem = difference(model, simplified, self.evaluator)
                if problem is not None:
                    simplified, note = model, f"undone: {problem}"
        self._record("onnxsim", start, before, simplified, note)
        return simplified

    def _record(self, name: str, start: float, before: int, model: ir.Model, note: str | None) -> None:
        after = model.graph.num_nodes()
        self.steps.tell(model, name)
        self.journal.passes.append(
            PassRecord(
                name=name,
                seconds=time.perf_counter() - start,
                rewrites=0,
                nodes_before=before,
                nodes_after=after,
                note=note,
            )
        )
