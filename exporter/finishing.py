"""The second half of export and optimize: write, check, measure and report, all in one staging folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.errors import DeploymlBug, VerdictError
from ..runtime.feeds import Case
from ..runtime.files import Staging
from ..runtime.progress import Progress
from ..runtime.report import LatencyReport, ParityReport, Report
from ..runtime.target import Target
from . import companions
from .artifact import Artifact, FileNames
from .bundle import reproducible
from .fusing import Fused, libraries_of
from .invariants import checker_breach
from .measuring import Graph, MakeContender, Reference, check_loads, measure_latency, measure_parity
from .options import Options
from .reporting import NOT_ASKED, make_report, properties_of
from .writing import stamp, write_models

__all__ = ["Checks", "finish"]


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a finished graph is held against.

    Attributes:
        reference: Makes the reference; called only when parity is asked for, with the written unfused graph.
        cases: Makes the parity grid.
        bench: Makes the inputs of the timed run, the wish first.
        others: Contenders besides the two graphs.
        seconds: Time for the latency run.
    """

    reference: Callable[[Graph], Reference]
    cases: Callable[[], Sequence[Case]]
    bench: Callable[[], Sequence[Case]]
    others: Mapping[str, tuple[MakeContender, str]] = field(default_factory=dict)
    seconds: float = 10.0


def finish(
    command: str,
    output: Path,
    *,
    source: str,
    fused: Fused,
    target: Target,
    options: Options,
    checks: Checks,
    notes: Sequence[str],
    progress: Progress,
) -> Artifact:
    """Write the graphs, check and measure them, write the report; all files appear together or not at all.

    Raises:
        VerdictError: with ``raise_on_failure``, after the files are in place.
        DeploymlError: if the files cannot be written or the graph cannot run on the target here.
        DeploymlBug: if the written graph is not valid.
    """
    names = FileNames(output.name)
    properties = properties_of(target, fused)
    libraries = libraries_of(fused.model, target.name)
    for model in (fused.model, fused.unfused):
        stamp(model, properties=properties)
    with reproducible(fused.unfused):
        breach = checker_breach(fused.model)
        if breach is not None:
            raise DeploymlBug(breach)
    with Staging(output) as staging:
        with progress.stage("write"):
            files = write_models(staging, names, fused.model, fused.unfused, external_data=options.external_data)
        graph, unfused = (
            Graph(
                path=staging.path(name),
                target=target.name,
                libraries=libraries,
                allow_cpu_fallback=options.allow_cpu_fallback,
            )
            for name in (names.model, names.unfused)
        )
        parity, latency, not_run = _measure(graph, unfused, options, checks, progress)
        report = make_report(
            command,
            source=source,
            target=target,
            options=options,
            fused=fused,
            files={**files, "report": names.report, **companions.files(names, html=options.html)},
            parity=parity,
            latency=latency,
            notes=notes,
            not_run=not_run,
            libraries=[Path(library).name for library in libraries],
            stages=progress.stages,
        )
        staging.write(names.report, report.to_json() + "\n")
        companions.write(staging, names, report, fused, html=options.html)
    _raise_if_asked(report, options)
    return Artifact(output, report)


def _measure(
    graph: Graph, unfused: Graph, options: Options, checks: Checks, progress: Progress
) -> tuple[ParityReport | None, LatencyReport | None, dict[str, str]]:
    not_run = {name: why for name, why in NOT_ASKED.items() if not getattr(options, name)}
    if not options.validate and not options.bench:
        if _runs_here(graph):
            with progress.stage("open"):
                check_loads(graph)
        else:
            not_run["load"] = f"there is no {graph.target} provider in this environment"
        return None, None, not_run
    parity = latency = None
    if options.validate:
        parity = measure_parity(graph, unfused, checks.reference(unfused), checks.cases(), progress)
    if options.bench:
        latency = measure_latency(
            {"unfused": unfused, "fused": graph},
            checks.bench(),
            progress,
            others=checks.others,
            seconds=checks.seconds,
        )
    return parity, latency, not_run


def _runs_here(graph: Graph) -> bool:
    """Whether this environment has the provider at all; without it a model for another machine is only written."""
    import onnxruntime

    from ..runtime.providers import providers_for

    return graph.allow_cpu_fallback or providers_for(graph.target)[0] in onnxruntime.get_available_providers()


def _raise_if_asked(report: Report, options: Options) -> None:
    if not options.raise_on_failure or report.verdict == "pass":
        return
    worst = report.parity.worst if report.parity is not None else None
    said = f": {worst.output} at {worst.case} needs {worst.needed}" if worst is not None else ""
    raise VerdictError(
        f"the verdict on {report.model} is '{report.verdict}'{said}",
        hint="the files are written; the report beside the model has every number",
        report=report,
    )
