"""``deployml.bench``: latency of an ONNX file against its source and its unfused sibling, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..passes.attention.present import present_attention
from ..runtime.attempt import Runner
from ..runtime.errors import InputError
from ..runtime.feeds import Case, InputSpec, root_symbols
from ..runtime.files import atomic_write, check_writable
from ..runtime.html import html_report
from ..runtime.progress import Progress
from ..runtime.reach import Limits, reachable
from ..runtime.report import Report
from ..runtime.target import TargetName
from .against import Source, Subject, open_source, open_subject
from .artifact import FileNames
from .feeding import bench_cases, input_specs
from .keeping import check_output
from .measuring import Extras, Footprint, Graph, MakeContender, measure_latency
from .measuring import sweep as measure_sweep
from .options import SourceOptions, check_list, picked
from .reporting import report_on_file
from .sweeping import check_axes, parse_sweep, sweep_cases

__all__ = ["bench"]

#: Names of the contenders that deployml makes itself.
_RESERVED: Final = ("fused", "unfused", "source", "eager", "compiled")


def bench(
    model: str | Path,
    *,
    against: Any | None = None,
    target: TargetName = "cpu",
    inputs: Sequence[str] = (),
    inputs_file: str | Path | None = None,
    factory: str | Callable[[], Any] | None = None,
    trust_pickle: bool = False,
    allow_globals: Sequence[str] = (),
    with_past: bool = False,
    allow_cpu_fallback: bool = False,
    seconds: float = 10.0,
    threads: int | None = None,
    max_slowdown: float | None = None,
    contenders: Sequence[str | Path] = (),
    compile: bool = False,
    memory: bool = False,
    sweep: str | None = None,
    page: str | Path | None = None,
    progress: bool | Progress = False,
) -> Report:
    """Time an ONNX file, its unfused sibling where one lies beside it, its source and others, in turn.

    Args:
        model: The ONNX file.
        against: A source to time as well: whatever :func:`deployml.export` takes, or an ONNX file.
        target: What the file runs on.
        inputs: Inputs of a torch source as text, ``NAME:DTYPE[batch,seq,64]``.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs of a torch source.
        factory: ``pkg.mod:build``, ``FILE.py:FN`` or a callable that builds the module a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        with_past: Make the key-value cache of a Hugging Face decoder inputs and outputs of the graph; inputs are then
            not given. See :class:`deployml.exporter.load.past.WithPast`.
        allow_cpu_fallback: Accept a session on the CPU where the target's provider does not come up.
        seconds: Time for all of it, warm-up included.
        threads: Threads of every contender; as many as the process may use when None.
        max_slowdown: How many times slower than the unfused graph the file may be.
        contenders: Further ONNX files with the same inputs, timed under their own names.
        compile: Time the torch source under ``torch.compile`` too.
        memory: Measure what memory each contender takes on the CPU, each in a process of its own.
        sweep: Sizes to time at as well, as "batch=1,4 sequence=32,128"; every combination, in the same time again.
        page: Where to write the report as a page.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        A report whose ``latency`` is filled. A failed or inconclusive verdict is in the report.

    Raises:
        DeploymlError: if a side cannot be opened, or their inputs differ.
    """
    options, wanted = picked(SourceOptions, locals()), parse_sweep(sweep)
    check_list("contenders", contenders, "files")
    if page is not None:
        check_writable(page)
        check_output(page, model, (against, inputs_file, *contenders), option="--page")
    with Progress.of(progress) as bars, ExitStack() as stack:
        subject = open_subject(model, target, allow_cpu_fallback=allow_cpu_fallback)
        source: Source | None = None
        if against is not None:
            source = stack.enter_context(open_source(against, subject, bars, options))
        specs = source.specs if source is not None else input_specs(subject.model)
        check_axes(specs, wanted)
        shown = source.traced if source is not None else {}
        taken: list[tuple[tuple[InputSpec, ...], Limits]] = [(specs, {})]

        def cases(run: Runner) -> Sequence[Case]:
            taken.append(reachable(specs, run, shown=shown))
            return bench_cases(*taken[-1], traced=shown)

        graphs = {**_graphs(subject.graph, source), **_others(subject, contenders)}
        others = _torch_contenders(source, compile)
        sites = tuple(n.name or "" for n in present_attention(subject.model))
        latency = measure_latency(
            graphs,
            cases,
            bars,
            others=others,
            seconds=seconds,
            threads=threads,
            max_slowdown=max_slowdown,
            extras=Extras(sites=sites, memory=memory, footprints=_footprints(against, options, others)),
        )
        if wanted:
            meant, least = taken[-1]
            meant = _swept(specs, meant, wanted)
            points = sweep_cases(meant, wanted, usual=bench_cases(meant, least, traced=shown)[0].sizes)
            swept = measure_sweep(graphs, points, bars, others=others, seconds=seconds, threads=threads)
            latency = replace(latency, sweep=swept)
        report = report_on_file("bench", subject, source, latency=latency, stages=bars.stages)
    if page is not None:
        atomic_write(page, html_report(report))
    return report


def _swept(
    specs: tuple[InputSpec, ...], meant: tuple[InputSpec, ...], wanted: Mapping[str, Sequence[int]]
) -> tuple[InputSpec, ...]:
    """The inputs of a sweep: as the file declares them where an axis is named that ``meant`` ties to others."""
    free = {symbol for symbol, _ in root_symbols(meant)}
    return meant if free >= wanted.keys() else specs


def _torch_contenders(source: Source | None, compile: bool) -> dict[str, tuple[MakeContender, str]]:
    """Eager torch and, on request, the same compiled."""
    if source is None or source.contender is None:
        if compile:
            raise InputError(
                "there is no torch source to compile", hint="give it with --against, or leave --compile out"
            )
        return {}
    found = {"eager": source.contender}
    if compile and source.compiled is not None:
        found["compiled"] = source.compiled
    return found


def _footprints(source: Any, options: SourceOptions, others: Iterable[str]) -> dict[str, Footprint]:
    """How to measure the memory of the torch contenders."""
    if not others:
        return {}
    from .eager_memory import eager_footprint

    def of(name: str) -> Footprint:
        compiled = name == "compiled"
        return lambda feeds, threads: eager_footprint(source, options, feeds, threads=threads, compiled=compiled)

    return {name: of(name) for name in others}


def _others(subject: Subject, paths: Sequence[str | Path]) -> dict[str, Graph]:
    """Further files by their names, each checked to take the same inputs."""
    found: dict[str, Graph] = {}
    for path in paths:
        other = open_subject(path, subject.graph.target, allow_cpu_fallback=subject.graph.allow_cpu_fallback)
        ours, theirs = (sorted(s.name for s in input_specs(m)) for m in (subject.model, other.model))
        if ours != theirs:
            raise InputError(
                f"'{other.graph.path.name}' takes {', '.join(theirs)}, the model takes {', '.join(ours)}",
                hint="contenders must take the same inputs",
            )
        name = other.graph.path.stem
        found[name if name not in (*found, *_RESERVED) else str(path)] = other.graph
    return found


def _graphs(graph: Graph, source: Source | None) -> dict[str, Graph]:
    """The contenders that onnxruntime runs: the source, the sibling, the file itself (called "fused")."""
    found: dict[str, Graph] = {}
    if source is not None and source.graph is not None:
        found["source"] = replace(source.graph, target=graph.target)
    sibling = graph.path.with_name(FileNames(graph.path.name).unfused)
    if graph.path.suffix == ".onnx" and sibling.is_file():
        found["unfused"] = replace(graph, path=sibling)
    return {**found, "fused": graph}
