"""Parity and latency of written graphs, given a reference; knows nothing of torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from ..passes.evaluate import has_halves
from ..runtime import latency, parity
from ..runtime.attempt import Runner, in_one_line
from ..runtime.confirm import confirmed
from ..runtime.errors import DeploymlError
from ..runtime.feeds import Case
from ..runtime.footprint import footprint
from ..runtime.isolate import is_out_of_memory
from ..runtime.peak import measured_peak
from ..runtime.processors import usable_threads
from ..runtime.profile import profile
from ..runtime.progress import Progress
from ..runtime.providers import CPU
from ..runtime.report import LatencyReport, ParityReport, Profile, SweepPoint
from ..runtime.session import Optimize, feeds_for, nodes_per_provider, open_session
from ..runtime.target import TargetName
from ..runtime.tensors import session_runner, to_ort
from .settled import settled_outputs

__all__ = [
    "TOLERANCE",
    "Extras",
    "Footprint",
    "Graph",
    "Reference",
    "check_loads",
    "measure_latency",
    "measure_parity",
    "sweep",
]

#: Granted difference, relative to the largest reference value of each output.
TOLERANCE = 1e-4

#: Makes a contender on fixed inputs with so many threads; what it opened is closed with the stack.
MakeContender = Callable[[Mapping[str, np.ndarray], ExitStack, int], Callable[[], None]]

#: Bytes that a contender takes on these inputs with so many threads.
Footprint = Callable[[Mapping[str, np.ndarray], int], int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A written graph and how to open it.

    Attributes:
        path: The file.
        target: What it runs on.
        libraries: Op libraries it needs.
        allow_cpu_fallback: Accept a session on the CPU.
    """

    path: Path
    target: TargetName = "cpu"
    libraries: tuple[str, ...] = ()
    allow_cpu_fallback: bool = False

    def open(
        self,
        *,
        threads: int | None = None,
        optimize: Optimize = "all",
        stop_spinning: bool = False,
        profile: str | None = None,
    ) -> onnxruntime.InferenceSession:
        """A session, or the reason why there is none."""
        return open_session(
            self.path,
            self.target,
            libraries=self.libraries,
            threads=threads,
            allow_cpu_fallback=self.allow_cpu_fallback,
            optimize=optimize,
            stop_spinning=stop_spinning,
            profile=profile,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a latency run measures besides times.

    Attributes:
        profile: Where the time goes, operator by operator, and how much of the machine's peak is reached.
        sites: Names of the nodes whose time is wanted in any case.
        memory: The memory each contender takes, in a process of its own, which takes seconds each.
        footprints: How to measure that of contenders that are no graphs, from the inputs and the number of threads.
    """

    profile: bool = True
    sites: Sequence[str] = ()
    memory: bool = False
    footprints: Mapping[str, Footprint] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a graph is compared with.

    Attributes:
        run: Named arrays to outputs.
        name: For the report: "eager float32".
        same_dtype: Whether output dtypes must be equal to the graph's.
    """

    run: Runner
    name: str
    same_dtype: bool = True


def check_loads(graph: Graph) -> None:
    """Open the graph once.

    Raises:
        DeploymlError: if onnxruntime does not load it.
    """
    graph.open(threads=1)


def measure_parity(
    graph: Graph, unfused: Graph | None, reference: Reference, cases: Sequence[Case], progress: Progress
) -> ParityReport:
    """Compare a graph with its reference on every case; see :func:`deployml.runtime.parity.validate`."""
    with progress.stage("validate") as stage:
        stage.total(len(cases))
        session = graph.open()
        plain = None if unfused is None else unfused.open()
        found = parity.validate(
            session_runner(session),
            reference.run,
            cases,
            output_names=[output.name for output in session.get_outputs()],
            tolerance=TOLERANCE,
            reference_name=reference.name,
            unfused=None if plain is None else session_runner(plain),
            same_dtype=reference.same_dtype,
            settled=settled_outputs(graph.path),
            halves=has_halves(ir.load(graph.path)),
            keyless="fully-masked-rows" in _assumptions(session),
            on_case=lambda case: stage.advance(text=case.name),
        )
        return replace(found, nodes=nodes_per_provider(session))


def _assumptions(session: onnxruntime.InferenceSession) -> list[str]:
    """What a graph of ours says that it rests on."""
    said: Mapping[str, str] = session.get_modelmeta().custom_metadata_map
    return said.get("deployml.assumptions", "").split(",")


def measure_latency(
    graphs: Mapping[str, Graph],
    cases: Callable[[Runner], Sequence[Case]],
    progress: Progress,
    *,
    others: Mapping[str, tuple[MakeContender, str]] | None = None,
    seconds: float = 10.0,
    threads: int | None = None,
    max_slowdown: float | None = None,
    extras: Extras | None = None,
) -> LatencyReport:
    """Time graphs and other contenders in turn; see :func:`deployml.runtime.latency.bench`.

    Args:
        graphs: Name to graph; "fused" is the one the others are compared with.
        cases: Makes the inputs to time with, the wish first, at sizes which a graph takes; the first that all graphs
            run is taken, else nothing is timed.
        progress: Shows the stage.
        others: Further contenders: how to make one, and the provider to report.
        seconds: Time for all of it.
        threads: Threads of every contender; as many as the process may use when None.
        max_slowdown: How many times slower than "unfused" the fused graph may be. What is measured as slower is
            measured again, on a busy machine in processor time, which others do not add to; both must say so.
        extras: What else is measured.
    """
    extras = extras or Extras()
    count = threads or usable_threads()
    with progress.stage("bench"), ExitStack() as stack:
        sessions = {name: graph.open(threads=count, stop_spinning=True) for name, graph in graphs.items()}
        case, why = _first_that_runs(sessions, cases(session_runner(next(iter(sessions.values())))))
        if case is None:
            return LatencyReport(verdict="not-run", shapes={}, threads=count, notes=(why,))
        contenders: dict[str, Callable[[], None]] = {}
        providers: dict[str, str] = {}
        for name, (make, provider) in (others or {}).items():
            contenders[name], providers[name] = make(case.feeds, stack, count), provider
        for name, session in sessions.items():
            provider = session.get_providers()[0]
            device = "cuda" if provider == "CUDAExecutionProvider" else "cpu"
            contenders[name] = latency.bound_runner(session, case.feeds, device=device)
            providers[name] = provider
        found = _profile(graphs, sessions, case, count, extras)
        peak = None if found is None else found.peak_flops
        busy = _busy()
        measure = partial(
            latency.bench,
            contenders,
            shapes={name: tuple(array.shape) for name, array in case.feeds.items()},
            threads=count,
            providers=providers,
            max_slowdown=max_slowdown,
            flops=None if found is None else found.flops,
            peak_flops=peak,
            notes=busy,
        )
        on_cpu = all(session.get_providers()[0] == CPU for session in sessions.values())
        timed = _decided(measure, seconds, time.process_time if busy and on_cpu else None)
        placed = {name: nodes_per_provider(session) for name, session in sessions.items()}
        listed = tuple(replace(one, nodes=placed.get(one.name, {})) for one in timed.contenders)
        timed = replace(timed, profile=found, contenders=listed)
        return _with_memory(timed, graphs, case, count, extras) if extras.memory else timed


def _decided(measure: Callable[..., LatencyReport], seconds: float, own_time: latency.Clock | None) -> LatencyReport:
    """Measure; what fails is measured again, with a clock that other programs do not drive where there is one."""
    timed = measure(seconds=seconds)
    if timed.verdict != "fail":
        return timed
    options = {} if own_time is None else {"clock": own_time}
    return confirmed(timed, measure(seconds=seconds / 2, **options))


def _profile(
    graphs: Mapping[str, Graph],
    sessions: Mapping[str, onnxruntime.InferenceSession],
    case: Case,
    threads: int,
    extras: Extras,
) -> Profile | None:
    """Where the time of the fused graph goes; peaks are measured where it runs on the CPU."""
    graph = graphs.get(latency.BASE)
    if graph is None or not extras.profile:
        return None
    on_cpu = sessions[latency.BASE].get_providers()[0] == CPU
    peak = measured_peak(threads) if on_cpu else None
    return profile(
        lambda prefix: graph.open(threads=threads, profile=prefix), case.feeds, sites=extras.sites, peak=peak
    )


def _with_memory(
    timed: LatencyReport, graphs: Mapping[str, Graph], case: Case, threads: int, extras: Extras
) -> LatencyReport:
    """The report with the memory of each contender on the CPU, or a note on why there is none."""
    notes: list[str] = []

    def held(name: str) -> int | None:
        graph = graphs.get(name)
        try:
            if graph is not None and graph.target in ("cpu", "portable"):
                return footprint(graph.path, graph.target, graph.libraries, case.feeds, threads=threads)
            measure = extras.footprints.get(name)
            return None if graph is not None or measure is None else measure(case.feeds, threads)
        except DeploymlError as error:
            notes.append(f"the memory of '{name}' was not measured: {error.message}")
            return None

    measured = tuple(replace(one, peak_memory=held(one.name)) for one in timed.contenders)
    return replace(timed, contenders=measured, notes=(*timed.notes, *notes))


def sweep(
    graphs: Mapping[str, Graph],
    cases: Mapping[tuple[tuple[str, int], ...], Case],
    progress: Progress,
    *,
    others: Mapping[str, tuple[MakeContender, str]] | None = None,
    seconds: float,
    threads: int | None = None,
) -> tuple[SweepPoint, ...]:
    """Time the same contenders at several sizes.

    Args:
        graphs: As for :func:`measure_latency`.
        cases: Sizes to the inputs that have them.
        progress: Shows the stage.
        others: As for :func:`measure_latency`.
        seconds: Time for all of it.
        threads: As for :func:`measure_latency`.
    """
    quiet, found = Progress(enabled=False), []
    with progress.stage("sweep") as stage:
        stage.total(len(cases))
        for sizes, case in cases.items():
            stage.advance(text=", ".join(f"{name}={size}" for name, size in sizes))
            point = SweepPoint(sizes=dict(sizes), medians={})
            try:
                timed = measure_latency(
                    graphs,
                    partial(_only, case),
                    quiet,
                    others=others,
                    seconds=seconds / len(cases),
                    threads=threads,
                    extras=Extras(profile=False),
                )
            except Exception as error:  # a size beyond a table of positions: said, and the next one is tried
                found.append(replace(point, note=" ".join(str(error).split())[:160]))
                continue
            if not timed.contenders:
                found.append(replace(point, note="; ".join(timed.notes)[:320]))
                continue
            medians = {c.name: c.median_ms for c in timed.contenders}
            found.append(replace(point, medians=medians, ratios=timed.ratios))
    return tuple(found)


def _only(case: Case, _: Runner) -> Sequence[Case]:
    return [case]


def _first_that_runs(
    sessions: Mapping[str, onnxruntime.InferenceSession], cases: Sequence[Case]
) -> tuple[Case | None, str]:
    """The first case within all models' limits (a table of positions ends somewhere), or None and why none runs.

    Raises:
        Exception: that of the last case, the smallest, where even that one runs out of memory.
    """
    said, last = "there are no inputs to time it with", None
    for case in cases:
        tried = ((name, _refusal(session, case)) for name, session in sessions.items())
        name, last = next(((name, why) for name, why in tried if why is not None), ("", None))
        if last is None:
            return case, ""
        said = f"it runs at no size that was tried; at {case.name} onnxruntime refuses '{name}': {in_one_line(last)}"
    if last is not None and is_out_of_memory(last):
        raise last  # the stage says so
    return None, said


def _refusal(session: onnxruntime.InferenceSession, case: Case) -> Exception | None:
    """Why a graph does not run on a case; None where it does."""
    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = 4  # a length that does not fit is no news
    try:
        feeds = {name: to_ort(array) for name, array in feeds_for(session, case.feeds).items()}
        session.run_with_ort_values(None, feeds, quiet)
    except Exception as error:  # onnxruntime raises classes of its own, one for each status; a smaller size is tried
        return error
    return None


def _busy() -> tuple[str, ...]:
    """A remark when other work competes for the processors: threads that wait for each other then wait long."""
    if not hasattr(os, "getloadavg"):
        return ()
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load <= 1.5 * processors:  # this process alone does not come to that
        return ()
    return (f"other programs kept the machine busy (load {load:.1f} on {processors} processors): measure again",)
