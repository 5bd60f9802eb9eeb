"""Putting together the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import __version__
from ..passes.rule import ASSUMPTIONS
from ..runtime.parity import refusal
from ..runtime.report import Culprit, LatencyReport, ParityReport, Report, Stage, Verdict
from ..runtime.target import Target
from ..runtime.versions import installed
from .against import Source, Subject
from .fusing import Fused
from .options import Options

__all__ = ["NOT_ASKED", "make_report", "properties_of", "report_on_file"]

#: Why a check did not run, when the user switched it off.
NOT_ASKED: Mapping[str, str] = {"validate": "switched off (--no-validate)", "bench": "switched off (--no-bench)"}

#: Packages that decide what a graph looks like; their versions are written into it.
_MAKERS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "onnxruntime", "transformers")


def _total_verdict(parity: ParityReport | None, latency: LatencyReport | None) -> Verdict:
    """The verdict of a whole run: a failure wins, then what could not be decided; "not-run" where nothing was held."""
    verdicts = [part.verdict for part in (parity, latency) if part is not None]
    if not verdicts:
        return "not-run"
    if "fail" in verdicts:
        return "fail"
    return "inconclusive" if "inconclusive" in verdicts or "not-run" in verdicts else "pass"


def properties_of(target: Target, fused: Fused) -> dict[str, str]:
    """Metadata to write into a model: versions and target; nothing of the machine and no time."""
    found = {f"deployml.with.{name}": version for name, version in installed(_MAKERS).items()}
    found["deployml.version"] = __version__
    found["deployml.target"] = target.name
    found["deployml.onnxruntime"] = ".".join(map(str, target.onnxruntime))
    if fused.journal.assumptions():
        found["deployml.assumptions"] = ",".join(fused.journal.assumptions())
    return found


def make_report(
    command: str,
    *,
    source: str,
    target: Target,
    options: Options,
    fused: Fused,
    files: Mapping[str, str],
    digests: Mapping[str, str],
    parity: ParityReport | None,
    latency: LatencyReport | None,
    culprit: Culprit | None = None,
    notes: Sequence[str],
    not_run: Mapping[str, str],
    libraries: Sequence[str],
    stages: Sequence[Stage],
) -> Report:
    """The report of an export or an optimize run."""
    journal = fused.journal
    skipped = dict(not_run) | _uncompared(parity, files["model"], source)
    if not options.fuse_attention:
        skipped["fusion"] = "attention was left unfused (--no-fuse-attention)"
    return Report(
        command=command,
        verdict=_total_verdict(parity, latency),
        model=files["model"],
        source=source,
        target=target.name,
        versions=installed(),
        sites=fused.sites,
        rewrites=tuple(journal.rewrites),
        declines=tuple(journal.worth_telling()),
        passes=tuple(journal.passes),
        census_before=fused.census_before,
        census_after=fused.census_after,
        parity=parity,
        latency=latency,
        culprit=culprit,
        assumptions={name: ASSUMPTIONS[name] for name in journal.assumptions()},
        warnings=tuple(dict.fromkeys([*notes, *journal.notes])),
        not_run=skipped,
        files=dict(files),
        digests=dict(digests),
        libraries=tuple(libraries),
        stages=tuple(stages),
    )


def _uncompared(parity: ParityReport | None, model: str, source: str) -> dict[str, str]:
    """Why nothing was compared, where the reference ran no case, and what to do next."""
    why = None if parity is None else refusal(parity)
    if why is None:
        return {}
    command = f"deployml validate {model} --against {source} --data FOLDER"
    return {"parity": f"{why}; compare on your own inputs: {command}"}


def report_on_file(
    command: str,
    subject: Subject,
    source: Source | None,
    *,
    parity: ParityReport | None = None,
    latency: LatencyReport | None = None,
    culprit: Culprit | None = None,
    stages: Sequence[Stage],
) -> Report:
    """The report of a validate or a bench run, which measures a file and makes none."""
    done = {"validate": parity, "bench": latency}
    skipped = {name: f"not part of {command}" for name, found in done.items() if found is None}
    against = subject.graph.path.name if source is None else source.name
    return Report(
        command=command,
        verdict=_total_verdict(parity, latency),
        model=subject.graph.path.name,
        source=against,
        target=subject.graph.target,
        versions=installed(),
        parity=parity,
        latency=latency,
        culprit=culprit,
        warnings=() if source is None else source.notes,
        not_run=skipped | _uncompared(parity, subject.graph.path.name, against),
        libraries=tuple(Path(library).name for library in subject.graph.libraries),
        stages=tuple(stages),
    )
