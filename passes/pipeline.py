"""The pipeline: which passes run, in which order. Read it top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ..runtime.report import PassRecord
from ..runtime.target import Target
from . import activations, attention, canonical, layout, norms, rotary
from .cleanup import deduplicate, fold, infer_shapes, simplify
from .engine import Engine
from .evaluate import Evaluator
from .journal import Journal
from .proof import Prover
from .rule import Context

__all__ = ["Options", "baseline", "run"]

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


def run(
    model: ir.Model,
    target: Target,
    *,
    options: Options | None = None,
    configure: Callable[[Any], None] | None = None,
    stage: StageHook | None = None,
) -> Journal:
    """Fuse a model in place.

    Args:
        model: The model, with attention calls as canonical nodes where they were captured.
        target: What it must run on.
        options: What may be done.
        configure: Registers op libraries on the session options of proofs.
        stage: Makes a context manager for each stage, for progress display.

    Returns:
        The journal: every site, rewrite, decline and pass.
    """
    options = options or Options()
    hook: StageHook = stage or (lambda _: nullcontext())
    journal = Journal()
    context = Context(model, target)
    engine = Engine(context, Prover(model, Evaluator(configure)), journal, disabled=options.disabled)
    with hook("prepare"):
        _timed(engine, "fold-constants", lambda: fold(model))
        _timed(engine, "infer-shapes", lambda: infer_shapes(model))
        _timed(engine, "dedupe", lambda: deduplicate(model))
    with hook("recognise"):
        engine.run("recognise-attention", attention.RECOGNISE if options.fuse_attention else ())
        engine.run("norms", norms.RULES)
        engine.run("rotary", rotary.RULES)
    with hook("lower"):
        if options.fuse_attention:
            attention.lower_attention(engine)
            attention.record_unrecognised(engine)
        else:
            canonical.expand_all(model)
        engine.run("layout", layout.RULES)
        _timed(engine, "dedupe", lambda: deduplicate(model))
    with hook("neighbours"):
        engine.run("activations", activations.RULES)
        engine.run("attention-bias", attention.REFINE)
        engine.run("layout", layout.RULES)
    with hook("clean up"):
        _timed(engine, "fold-constants", lambda: fold(model))
        if options.simplify:
            _timed(engine, "simplify", lambda: simplify(model))
        _timed(engine, "dedupe", lambda: deduplicate(model))
        _timed(engine, "infer-shapes", lambda: infer_shapes(model))
    return journal


def baseline(model: ir.Model) -> ir.Model:
    """The unfused sibling: the same graph with every canonical attention as plain operators.

    Constants are folded as any exporter would; weights are shared with the model that was given.
    """
    plain = model.clone()
    canonical.expand_all(plain)
    fold(plain)
    infer_shapes(plain)
    deduplicate(plain)
    return plain


def _timed(engine: Engine, name: str, work: Callable[[], Any]) -> None:
    """Run a whole-graph pass and record it; a text it returns is its note."""
    graph = engine.context.model.graph
    start, before = time.perf_counter(), graph.num_nodes()
    result = work()
    engine.journal.passes.append(
        PassRecord(
            name=name,
            seconds=time.perf_counter() - start,
            rewrites=result if isinstance(result, int) else 0,
            nodes_before=before,
            nodes_after=engine.context.model.graph.num_nodes(),
            note=result if isinstance(result, str) else None,
        )
    )
