"""``deployml.bench``: latency of an ONNX file against its source and its unfused sibling, interleaved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..runtime.progress import Progress
from ..runtime.report import Report
from ..runtime.target import TargetName
from .against import Source, open_source, open_subject
from .artifact import FileNames
from .feeding import bench_cases, input_specs
from .measuring import Graph, measure_latency
from .options import SourceOptions, picked
from .reporting import report_on_file

__all__ = ["bench"]


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
    allow_cpu_fallback: bool = False,
    seconds: float = 10.0,
    threads: int | None = None,
    max_slowdown: float | None = None,
    progress: bool | Progress = False,
) -> Report:
    """Time an ONNX file, its unfused sibling where one lies beside it, and its source, in turn.

    Args:
        model: The ONNX file.
        against: A source to time as well: whatever :func:`deployml.export` takes, or an ONNX file.
        target: What the file runs on.
        inputs: Inputs of a torch source as text, ``NAME:DTYPE[batch,seq,64]``.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs of a torch source.
        factory: ``pkg.mod:build``, ``FILE.py:FN`` or a callable that builds the module a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        allow_cpu_fallback: Accept a session on the CPU where the target's provider does not come up.
        seconds: Time for all of it, warm-up included.
        threads: Threads of every contender; as many as the process may use when None.
        max_slowdown: How many times slower than the unfused graph the file may be.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        A report whose ``latency`` is filled. A failed or inconclusive verdict is in the report.

    Raises:
        DeploymlError: if a side cannot be opened, or their inputs differ.
    """
    options = picked(SourceOptions, locals())
    with Progress.of(progress) as bars, ExitStack() as stack:
        subject = open_subject(model, target, allow_cpu_fallback=allow_cpu_fallback)
        source: Source | None = None
        if against is not None:
            source = stack.enter_context(open_source(against, subject, bars, options))
        specs = source.specs if source is not None else input_specs(subject.model)
        latency = measure_latency(
            _graphs(subject.graph, source),
            bench_cases(specs),
            bars,
            others={} if source is None or source.contender is None else {"eager": source.contender},
            seconds=seconds,
            threads=threads,
            max_slowdown=max_slowdown,
        )
        return report_on_file("bench", subject, source, latency=latency, stages=bars.stages)


def _graphs(graph: Graph, source: Source | None) -> dict[str, Graph]:
    """The contenders that onnxruntime runs: the source, the sibling, the file itself (called "fused")."""
    found: dict[str, Graph] = {}
    if source is not None and source.graph is not None:
        found["source"] = replace(source.graph, target=graph.target)
    sibling = graph.path.with_name(FileNames(graph.path.name).unfused)
    if graph.path.suffix == ".onnx" and sibling.is_file():
        found["unfused"] = replace(graph, path=sibling)
    return {**found, "fused": graph}
