"""The second half of export and optimize: write, check, measure and report, all in one staging folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import onnx_ir as ir

from ..runtime.attempt import Runner
from ..runtime.errors import DeploymlBug, ToolchainError, VerdictError
from ..runtime.feeds import Case
from ..runtime.files import Staging, sha256_of
from ..runtime.progress import Progress
from ..runtime.providers import check_usable, providers_for
from ..runtime.report import LatencyReport, ParityReport, Report
from ..runtime.target import Target
from . import companions
from .artifact import Artifact, FileNames
from .bisect import Evidence, failing_case, find_culprit
from .bundle import reproducible
from .fusing import Fused, check_required, fuse, known_rules, libraries_of
from .invariants import checker_breach
from .measuring import Extras, Graph, MakeContender, Reference, check_loads, measure_latency, measure_parity
from .options import Options, output_path
from .reporting import NOT_ASKED, make_report, properties_of
from .writing import stamp, write_models

__all__ = ["Checks", "begin", "finish"]


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a finished graph is held against.

    Attributes:
        reference: Makes the reference; called only when parity is asked for, with the written unfused graph.
        cases: Makes the parity grid, at sizes which the reference takes.
        bench: Makes the inputs of the timed run, the wish first, at sizes which a graph takes.
        others: Contenders besides the two graphs.
        seconds: Time for the latency run.
    """

    reference: Callable[[Graph], Reference]
    cases: Callable[[Runner], Sequence[Case]]
    bench: Callable[[Runner], Sequence[Case]]
    others: Mapping[str, tuple[MakeContender, str]] = field(default_factory=dict)
    seconds: float = 10.0


def begin(output: str | Path, options: Options) -> tuple[Path, Target]:
    """Check what can be checked before a model is read: where to write, the rules named, the target.

    Raises:
        InputError: if one of them cannot be.
    """
    path, target = output_path(output), options.resolve()
    known_rules(options.disable_fusion)
    return path, target


def finish(
    command: str,
    output: Path,
    *,
    source: str,
    model: ir.Model,
    target: Target,
    options: Options,
    checks: Checks,
    notes: Sequence[str],
    progress: Progress,
) -> Artifact:
    """Fuse, write the graphs, check and measure them, write the report; all files appear together or not at all.

    Args:
        command: The command that asks, for the report.
        output: Where the model goes; the other files lie beside it.
        source: What the model was made from, without a folder.
        model: The graph to fuse, which is consumed.
        target: What it must run on.
        options: What is to be done.
        checks: What the result is held against.
        notes: Sentences for the user, from the stages before.
        progress: Shows and times the stages.

    Raises:
        VerdictError: if ``require_fused`` is unmet, and nothing is written; with ``raise_on_failure``, after the files
            are in place.
        DeploymlError: if the files cannot be written or the graph cannot run on the target here.
        DeploymlBug: if the written graph is not valid.
    """
    names = FileNames(output.name)
    fused = fuse(model, target, options, progress)
    check_required(options.require_fused, fused.sites, model=source)
    libraries = libraries_of(fused.model, target.name)
    _sign(fused, target)
    with Staging(output) as staging:
        with progress.stage("write"):
            files = write_models(staging, names, fused.model, fused.unfused, external_data=options.external_data)
        fallback = options.allow_cpu_fallback
        graph_at = partial(Graph, target=target.name, libraries=libraries, allow_cpu_fallback=fallback)
        written, unfused = (graph_at(path=staging.path(name)) for name in (names.model, names.unfused))
        parity, latency, evidence, not_run = _measure(written, unfused, fused, options, checks, progress)
        culprit = None if evidence is None else evidence.write(names, staging.write)
        report = make_report(
            command,
            source=source,
            target=target,
            options=options,
            fused=fused,
            files={**files, "report": names.report, **companions.files(names, html=options.html, culprit=culprit)},
            digests={role: sha256_of(staging.path(files[role])) for role in ("model", "data") if role in files},
            parity=parity,
            latency=latency,
            culprit=culprit,
            notes=notes,
            not_run=not_run,
            libraries=[Path(library).name for library in libraries],
            stages=progress.stages,
        )
        staging.write(names.report, report.to_json() + "\n")
        companions.write(staging, names, report, fused, html=options.html)
    _raise_if_asked(report, options)
    return Artifact(output, report)


def _sign(fused: Fused, target: Target) -> None:
    """Write into both graphs what made them, and hold the fused one against the rules of ONNX."""
    properties = properties_of(target, fused)
    for graph in (fused.model, fused.unfused):
        stamp(graph, properties=properties)
    with reproducible(fused.unfused):
        breach = checker_breach(fused.model)
        if breach is not None:
            raise DeploymlBug(breach)


def _measure(
    graph: Graph, unfused: Graph, fused: Fused, options: Options, checks: Checks, progress: Progress
) -> tuple[ParityReport | None, LatencyReport | None, Evidence | None, dict[str, str]]:
    not_run = {name: why for name, why in NOT_ASKED.items() if not getattr(options, name)}
    if not options.validate and not options.bench:
        missing = _no_provider(graph)
        if missing is None:
            with progress.stage("open"):
                check_loads(graph)
        else:
            not_run["load"] = f"the model is for {graph.target}; {missing}"
        return None, None, None, not_run
    parity = latency = evidence = None
    if options.validate:
        reference = checks.reference(unfused)
        cases = checks.cases(reference.run)
        parity = measure_parity(graph, unfused, reference, cases, progress)
        case = failing_case(parity, cases) if parity.verdict == "fail" else None
        if case is not None:
            with progress.stage("look for the first wrong step"):
                evidence = find_culprit(fused, graph, reference, case)
    if options.bench:
        latency = measure_latency(
            {"unfused": unfused, "fused": graph},
            checks.bench,
            progress,
            others=checks.others,
            seconds=checks.seconds,
            extras=Extras(sites=[site.name for site in fused.sites]),
        )
    return parity, latency, evidence, not_run


def _no_provider(graph: Graph) -> str | None:
    """Why the target's provider does not come up here, where a model for another machine is only written."""
    if not graph.allow_cpu_fallback:
        try:
            check_usable(providers_for(graph.target)[0])
        except ToolchainError as error:
            return error.message
    return None


def _raise_if_asked(report: Report, options: Options) -> None:
    if not options.raise_on_failure or report.verdict == "pass" or (report.parity is None and report.latency is None):
        return
    worst = report.parity.worst if report.parity is not None else None
    said = f": {worst.output} at {worst.case} needs {worst.needed}" if worst is not None else ""
    said += f"; {report.culprit.sentence()}" if report.culprit is not None else ""
    raise VerdictError(
        f"the verdict on {report.model} is '{report.verdict}'{said}",
        hint="the files are written; the report beside the model has every number",
        report=report,
    )
