"""``deployml.validate``: parity of an ONNX file with its source over a grid of shapes and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError
from ..runtime.feeds import Case
from ..runtime.files import atomic_write
from ..runtime.parity import ALL_OUTPUTS
from ..runtime.progress import Progress
from ..runtime.report import Culprit, ParityReport, Report
from ..runtime.target import TargetName
from .against import Subject, open_source, open_subject
from .artifact import FileNames
from .bisect import compare_files, failing_case
from .measuring import Reference, measure_parity
from .options import SourceOptions, picked
from .own_data import own_cases
from .reporting import report_on_file

__all__ = ["validate"]


def validate(
    model: str | Path,
    *,
    against: Any,
    target: TargetName = "cpu",
    inputs: Sequence[str] = (),
    inputs_file: str | Path | None = None,
    factory: str | Callable[[], Any] | None = None,
    trust_pickle: bool = False,
    allow_globals: Sequence[str] = (),
    with_past: bool = False,
    allow_cpu_fallback: bool = False,
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    progress: bool | Progress = False,
) -> Report:
    """Compare an ONNX file with what it was made from.

    Where results differ and the unfused graph lies beside the file, a minimal model that shows it is written there too,
    X.bisect.onnx with X.bisect.npz; both are taken away when results agree again.

    Args:
        model: The ONNX file.
        against: The source: whatever :func:`deployml.export` takes, or an ONNX file.
        target: What the file runs on.
        inputs: Inputs of a torch source as text, ``NAME:DTYPE[batch,seq,64]``.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs of a torch source.
        factory: ``pkg.mod:build``, ``FILE.py:FN`` or a callable that builds the module a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        with_past: Make the key-value cache of a Hugging Face decoder inputs and outputs of the graph; inputs are then
            not given. See :class:`deployml.exporter.load.past.WithPast`.
        allow_cpu_fallback: Accept a session on the CPU where the target's provider does not come up.
        data: Compare on these inputs instead of a grid of our own: a folder of ``.npz`` or ``.pt`` files, one set of
            inputs each, or mappings from input names to arrays, as a generator yields them.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        A report whose ``parity`` is filled. A failed verdict is in the report.

    Raises:
        DeploymlError: if either side cannot be opened, or their inputs differ.
    """
    options = picked(SourceOptions, locals())
    with Progress.of(progress) as bars:
        subject = open_subject(model, target, allow_cpu_fallback=allow_cpu_fallback)
        with open_source(against, subject, bars, options) as source:
            own = None if data is None else own_cases(data, source.specs)
            reference = source.reference()
            cases = own or source.parity_cases(reference)
            parity = measure_parity(subject.graph, source.yardstick, reference, cases, bars)
            parity = parity if own is None else _all_run(parity)
            case = failing_case(parity, cases) if parity.verdict == "fail" else None
            culprit = None if case is None else _culprit(subject, reference, case, bars)
        if parity.verdict == "pass":
            _forget_culprit(subject)
        return report_on_file("validate", subject, source, parity=parity, culprit=culprit, stages=bars.stages)


def _all_run(parity: ParityReport) -> ParityReport:
    """A user's own inputs are all meant to be compared: each that was not is named, and leaves the verdict open."""
    skipped = [c for c in parity.comparisons if c.output == ALL_OUTPUTS and c.verdict == "not-run"]
    notes = tuple(f"{c.case} was not compared: {c.note}" for c in skipped)
    verdict = "inconclusive" if skipped and parity.verdict == "pass" else parity.verdict
    return replace(parity, verdict=verdict, notes=(*parity.notes, *notes))


def _forget_culprit(subject: Subject) -> None:
    """Take the minimal model of an earlier failure away; where nothing can be removed it stays, and is no fault."""
    names = FileNames(subject.graph.path.name)
    for name in (names.bisect, names.bisect_inputs):
        with suppress(OSError):
            subject.graph.path.with_name(name).unlink(missing_ok=True)


def _culprit(subject: Subject, reference: Reference, case: Case, progress: Progress) -> Culprit | None:
    """Where the file parts from its unfused sibling; the minimal model that shows it is written beside it."""
    with progress.stage("look for the first wrong node"):
        evidence = compare_files(subject, reference, case)
    if evidence is None:
        return None
    path = subject.graph.path
    try:
        return evidence.write(FileNames(path.name), lambda name, data: atomic_write(path.with_name(name), data))
    except InputError as error:  # the verdict counts, with or without a model that shows it
        said = "; ".join(note for note in (evidence.culprit.note, f"no minimal model: {error.message}") if note)
        return replace(evidence.culprit, note=said)
