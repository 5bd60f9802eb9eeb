"""From a translated or loaded graph to the fused one, its unfused sibling and the journal."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from .. import custom_ops
from ..passes import pipeline, registry
from ..passes.graph import census
from ..passes.journal import Journal
from ..passes.steps import Watch
from ..runtime.errors import DeploymlBug, InputError, VerdictError
from ..runtime.progress import Progress
from ..runtime.report import Site
from ..runtime.target import Target, TargetName
from .bundle import reproducible
from .invariants import Signature, breaches, signature_of
from .options import Options, require_count

__all__ = ["Fused", "Start", "check_required", "fuse", "known_rules", "libraries_of", "line_of"]


@dataclass(frozen=True)
class Start:
    """A graph before the passes, and how they are run on it; they do the same each time."""

    model: ir.Model
    target: Target
    options: pipeline.Options

    def run(
        self, model: ir.Model, *, stage: pipeline.StageHook | None = None, watch: Watch | None = None
    ) -> pipeline.Outcome:
        """Run the passes over ``model``, which is consumed: :attr:`model`, or a copy of it."""
        # Proofs run on the CPU, whatever the target.
        configure = custom_ops.register
        return pipeline.run(model, self.target, options=self.options, configure=configure, stage=stage, watch=watch)


@dataclass(frozen=True)
class Fused:
    """A graph that went through the passes.

    Attributes:
        model: The fused graph.
        unfused: The same before fusion, attention as plain operators; shares weights with ``model``.
        journal: What the passes did.
        start: A copy of the graph that came in, and what it was fused with: enough to run the passes again.
        signature: Inputs and outputs of the graph that came in; those of ``model`` are the same.
        census_before: Operator counts of ``unfused``.
        census_after: Operator counts of ``model``.
    """

    model: ir.Model
    unfused: ir.Model
    journal: Journal
    start: Start
    signature: Signature
    census_before: dict[str, int]
    census_after: dict[str, int]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Every attention of the model."""
        return tuple(self.journal.sites)


def fuse(model: ir.Model, target: Target, options: Options, progress: Progress) -> Fused:
    """Run the passes over ``model``, which is consumed, and check what must hold afterwards.

    Raises:
        InputError: if a rule to be switched off does not exist.
        DeploymlBug: if an invariant broke.
    """
    known_rules(options.disable_fusion)
    before = signature_of(model)
    with progress.stage("set the unfused graph aside"):
        unfused = pipeline.baseline(model)

    def stage(name: str) -> AbstractContextManager[Any]:
        return progress.stage(f"passes: {name}")

    chosen = pipeline.Options(fuse_attention=options.fuse_attention, disabled=tuple(options.disable_fusion))
    start = Start(model.clone(), target, chosen)
    with reproducible(unfused):
        outcome = start.run(model, stage=stage)
        model, journal = outcome.model, outcome.journal
        found = breaches(model, before, journal.sites)
        if found:
            raise DeploymlBug("; ".join(found))
    return Fused(model, unfused, journal, start, before, census(unfused), census(model))


def known_rules(names: Sequence[str]) -> None:
    """Check names given to ``--disable-fusion``.

    Raises:
        InputError: naming those that are no rule.
    """
    unknown = [name for name in names if registry.find(name) is None]
    if unknown:
        listed = ", ".join(f"{rule.code} ({rule.name})" for rule in registry.RULES)
        raise InputError(f"there is no rule {', '.join(unknown)}", hint=f"choose among {listed}")


def check_required(required: str | int | None, sites: Sequence[Site], *, model: str) -> None:
    """Hold the sites against ``--require-fused``.

    Raises:
        VerdictError: naming every declined site with its module, source line and reason; its report is that tuple
            of sites.
    """
    count = require_count(required)
    if count is None:
        return
    fused = sum(site.status == "fused" for site in sites)
    if not sites:
        raise VerdictError(
            f"no attention was found in {model}, and --require-fused {required} wants it fused",
            hint="nothing was written; leave --require-fused out for models without attention",
        )
    if fused >= (len(sites) if count < 0 else count):
        return
    if count > len(sites):
        raise VerdictError(
            f"{model} has {len(sites)} attentions, --require-fused wants {required}",
            hint=f"nothing was written; ask for --require-fused all, or at most {len(sites)}",
            report=tuple(sites),
        )
    declined = [site for site in sites if site.status == "declined"]
    raise VerdictError(
        f"{fused} of {len(sites)} attentions of {model} were fused, --require-fused wants {required}"
        + "".join(f"\n  {line_of(site)}" for site in declined),
        hint="nothing was written; deployml explain RULE tells what a rule needs, or leave --require-fused out",
        report=tuple(sites),
    )


def line_of(site: Site) -> str:
    """One line on a declined site: module, source line, reason, detail."""
    where = site.module_path or site.name
    source = f" ({site.source})" if site.source else ""
    return f"{where}{source}: {site.reason}: {site.detail}"


def libraries_of(model: ir.Model, target: TargetName) -> tuple[str, ...]:
    """Path of the op library that a graph calls, if any; empty when it uses none of the project's operators."""
    if custom_ops.DOMAIN not in {node.domain for node in model.graph.all_nodes()}:
        return ()
    path = custom_ops.library_for(target)
    return () if path is None else (str(path),)
