"""``deployml.check``: hold a model against its lock, its source and its unfused sibling; explain each difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..runtime.attempt import attempt
from ..runtime.drift import CheckReport, Finding, differences, verdict_of
from ..runtime.errors import DeploymlError, InputError, UnsupportedError
from ..runtime.lock import Lock, LockedSite, read_lock
from ..runtime.parity import refusal
from ..runtime.progress import Progress
from ..runtime.reach import Limits, reachable
from ..runtime.report import LatencyReport, ParityReport
from ..runtime.target import TargetName
from ..runtime.tensors import session_runner
from ..runtime.versions import installed
from ..runtime.words import counted
from .against import Subject, open_source, open_subject
from .artifact import FileNames
from .explain import dry_run
from .feeding import bench_cases, input_specs, parity_cases
from .lock import lock_path
from .measuring import measure_latency, measure_parity
from .onnx_file import open_file, require_file
from .options import SourceOptions, picked
from .standing import lock_of, nan_weights

__all__ = ["check"]

#: Inputs that the model is run on, where no source is given.
_TRIALS: Final = 4


def check(
    model: str | Path,
    *,
    lock: str | Path | None = None,
    against: Any | None = None,
    max_slowdown: float | None = None,
    target: TargetName | None = None,
    inputs: Sequence[str] = (),
    inputs_file: str | Path | None = None,
    factory: str | Callable[[], Any] | None = None,
    trust_pickle: bool = False,
    allow_globals: Sequence[str] = (),
    with_past: bool = False,
    allow_cpu_fallback: bool = False,
    seconds: float = 10.0,
    progress: bool | Progress = False,
) -> CheckReport:
    """Compare an ONNX file with its lock; run it; with a source compare results, on request time it.

    Args:
        model: The ONNX file.
        lock: Its lock; None means X.lock.json beside it.
        against: The source, to compare results: whatever :func:`deployml.export` takes, or an ONNX file.
        max_slowdown: How many times slower than the unfused graph beside it the model may be; None: it is not timed.
        target: What the file runs on; None means what the lock says.
        inputs: Inputs of a torch source as text, ``NAME:DTYPE[batch,seq,64]``.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs of a torch source.
        factory: ``pkg.mod:build``, ``FILE.py:FN`` or a callable that builds the module a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        with_past: Make the key-value cache of a Hugging Face decoder inputs and outputs of the graph; inputs are then
            not given. See :class:`deployml.exporter.load.past.WithPast`.
        allow_cpu_fallback: Accept a session on the CPU where the target's provider does not come up.
        seconds: Time for the latency run.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        Every difference as a sentence. A failed or inconclusive verdict is in the report.

    Raises:
        DeploymlError: if the model, its lock or the source cannot be opened.
    """
    options = picked(SourceOptions, locals())
    path = Path(model).expanduser()
    require_file(path)
    place = lock_path(path) if lock is None else Path(lock).expanduser()
    sibling = _sibling(path) if max_slowdown is not None else None
    with Progress.of(progress) as bars:
        with bars.stage("compare with the lock"):
            locked = read_lock(place)
            subject = open_subject(path, target or _target(locked), allow_cpu_fallback=allow_cpu_fallback)
            now = lock_of(path, subject.model, weights=bool(locked.weights))
        found = list(differences(locked, now, weights_decide=against is None))
        if any(f.kind == "site" for f in found):
            found = list(differences(locked, _explained(now, subject, bars), weights_decide=against is None))
        ran, why, least = _run(subject, bars)
        parity = latency = None
        if against is not None and not any(f.kind == "load" for f in ran):
            parity = _parity(subject, against, bars, options)
        if sibling is not None and not any(f.kind == "load" for f in ran):
            latency = _latency(subject, sibling, bars, max_slowdown, seconds)
        found = [*found, *ran, *_on_parity(parity), *_on_latency(latency, max_slowdown)]
    not_run = {} if why is None else {"run": why}
    not_run |= {} if against is not None else {"parity": "no --against SOURCE was given"}
    not_run |= {} if max_slowdown is not None else {"latency": "no --max-slowdown was given"}
    return CheckReport(
        verdict=verdict_of(found),
        model=path.name,
        lock=place.name,
        findings=tuple(sorted(found, key=lambda f: ("fail", "inconclusive", "pass").index(f.verdict))),
        checked=_checked(locked, ran=why is None, least=least, parity=parity, latency=latency),
        not_run=not_run,
        parity=parity,
        latency=latency,
        versions=installed(),
    )


def _target(locked: Lock) -> TargetName:
    return locked.target if locked.target in ("cuda", "rocm", "portable") else "cpu"  # type: ignore[return-value]


def _sibling(path: Path) -> Path:
    """The unfused graph beside the model; asked for before anything slow begins."""
    sibling = path.with_name(FileNames(path.name).unfused)
    if not sibling.is_file():
        raise InputError(
            f"there is no '{sibling.name}' beside the model to time it against",
            hint="export writes it beside the model; keep both, or leave --max-slowdown out",
        )
    return sibling


def _explained(now: Lock, subject: Subject, progress: Progress) -> Lock:
    """The sites with the reasons that the rules give today, where the model's report gave none."""
    if all(s.status == "fused" or s.reason is not None for s in now.sites):
        return now
    path = subject.graph.path
    try:
        told = dry_run(path, open_file(path), subject.graph.target, progress)
    except DeploymlError:  # passes that refuse this graph have no reasons to give; the findings stand without
        return now
    by_place = {site.module_path or site.name: site for site in told.sites}
    return replace(now, sites=tuple(_with_reason(site, by_place.get(site.where)) for site in now.sites))


def _with_reason(site: LockedSite, told: Any) -> LockedSite:
    if site.status == "fused" or site.reason is not None or told is None:
        return site
    if told.status == "declined":
        return replace(site, rule=told.nearest or told.rule, reason=told.reason, detail=told.detail)
    op = str(told.op).removeprefix("com.microsoft::")
    advice = f"today's rules would make {op} of it (deployml optimize)"
    return replace(site, rule=None, reason="it was left unfused", detail=advice)


def _run(subject: Subject, progress: Progress) -> tuple[list[Finding], str | None, Limits]:
    """Load the model and run it on a few inputs. Findings, why it was not run, and the least sizes of its axes."""
    try:
        specs = input_specs(subject.model)
    except UnsupportedError as error:
        return [], error.message, {}
    with progress.stage("run"):
        try:
            session = subject.graph.open()
        except UnsupportedError as error:
            text = f"does not load: {error.message}"
            return [Finding(kind="load", where=subject.graph.path.name, text=text)], None, {}
        names = [output.name for output in session.get_outputs()]
        run = session_runner(session)
        meant, least = reachable(specs, run)
        cases = parity_cases(meant, least)[:_TRIALS]
        found: dict[str, Finding] = {}
        for case in cases:
            outputs, reason = attempt(run, case.feeds)
            if outputs is None:
                text = f"does not run at {case.name}: {reason}"
                return [Finding(kind="load", where=subject.graph.path.name, text=text)], None, {}
            for name, array in zip(names, outputs, strict=True):
                if name not in found and (text := _not_numbers(name, array, case.name)):
                    found[name] = Finding(kind="nan", where=name, text=text)
    return [*found.values(), *(_nan_weights(subject) if found else ())], None, least


def _not_numbers(name: str, array: np.ndarray, case: str) -> str | None:
    if array.dtype.kind not in "fV":
        return None
    bad = np.isnan(array.astype(np.float32))
    if not bad.any():
        return None
    first = [int(i) for i in np.argwhere(bad)[0]]
    return f"output '{name}' has NaN at {int(bad.sum())} of {bad.size} places at {case}, the first at {first}"


def _nan_weights(subject: Subject) -> Iterator[Finding]:
    names = nan_weights(subject.model)
    if names:
        listed = ", ".join(f"'{n}'" for n in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        yield Finding(kind="nan", where=names[0], text=f"NaN stands in the weights {listed}")


def _parity(subject: Subject, against: Any, progress: Progress, options: SourceOptions) -> ParityReport:
    with open_source(against, subject, progress, options) as source:
        reference = source.reference()
        return measure_parity(subject.graph, source.yardstick, reference, source.parity_cases(reference), progress)


def _on_parity(parity: ParityReport | None) -> Iterator[Finding]:
    if parity is None or parity.verdict == "pass":
        return
    worst = parity.worst
    if parity.verdict != "fail" or worst is None:
        why = refusal(parity)
        text = f"could not be compared with {parity.reference}" + (
            "" if why is None else f": {why}; deployml validate compares on your own inputs (--data FOLDER)"
        )
        yield Finding(kind="parity", where="outputs", text=text, verdict="inconclusive")
        return
    failed = len({c.case for c in parity.comparisons if c.verdict == "fail"})
    numbers = "" if worst.needed is None else f" needs {worst.needed:.1e}, {worst.granted:.1e} is granted,"
    note = f"; {worst.note}" if worst.note else ""
    place = f" worst at {list(worst.worst)}" if worst.worst else ""
    yield Finding(
        kind="parity",
        where=worst.output,
        text=f"results differ from {parity.reference} in {failed} cases: output '{worst.output}'{numbers} "
        f"at {worst.case}{place}{note}",
    )


def _latency(
    subject: Subject, sibling: Path, progress: Progress, max_slowdown: float | None, seconds: float
) -> LatencyReport:
    specs = input_specs(subject.model)
    return measure_latency(
        {"unfused": replace(subject.graph, path=sibling), "fused": subject.graph},
        lambda run: bench_cases(*reachable(specs, run)),
        progress,
        seconds=seconds,
        max_slowdown=max_slowdown,
    )


def _on_latency(latency: LatencyReport | None, allowed: float | None) -> Iterator[Finding]:
    if latency is None:
        return
    ratio = next((r for r in latency.ratios if r.of == "unfused"), None)
    if ratio is None:
        text = f"could not be timed: {'; '.join(latency.notes) or 'no reason known'}"
        yield Finding(kind="latency", where="graph", text=text, verdict="inconclusive")
        return
    low, high = 1 / ratio.high, 1 / max(ratio.low, 1e-9)
    took = f"takes {1 / ratio.value:.2f} times as long as the unfused graph (95 % interval {low:.2f} to {high:.2f})"
    end = {"fail": "more than", "inconclusive": "which does not decide about", "pass": "within"}[ratio.verdict]
    yield Finding(kind="latency", where="graph", text=f"{took}, {end} the {allowed:g} allowed", verdict=ratio.verdict)


def _checked(
    locked: Lock, *, ran: bool, least: Limits, parity: ParityReport | None, latency: LatencyReport | None
) -> tuple[str, ...]:
    sizes = ", ".join(f"{axis} from {low} on" for axis, (low, _) in least.items() if low > 1)
    said = [
        f"{counted(len(locked.sites), 'attention site')}, {locked.fused} of them fused",
        f"{counted(sum(locked.census.values()), 'node')} of {counted(len(locked.census), 'operator')}",
        f"{counted(len(locked.inputs), 'input')} and {counted(len(locked.outputs), 'output')} with their axes",
        "opsets and IR version",
    ]
    said += ["attributes, and what each operator reads"] if locked.wiring is not None else []
    said += ["weights"] if locked.weights else []
    said += ["loads and runs without NaN" + (f" ({sizes}, as it takes no less)" if sizes else "")] if ran else []
    said += [f"results against {parity.reference}"] if parity is not None else []
    said += ["time against the unfused graph"] if latency is not None else []
    return tuple(said)
