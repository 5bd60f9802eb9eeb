"""Holding a finished ONNX file against its source, which may be a torch model or another ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..passes.evaluate import has_halves
from ..runtime.errors import InputError
from ..runtime.feeds import Case, InputSpec
from ..runtime.progress import Progress
from ..runtime.reach import reachable
from ..runtime.shapes import symbols_of
from ..runtime.target import TargetName
from .feeding import input_specs, parity_cases
from .fusing import libraries_of
from .measuring import Graph, MakeContender, Reference
from .onnx_file import open_file
from .options import SourceOptions
from .wide_graph import reference_graph

__all__ = ["Source", "Subject", "open_source", "open_subject"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The file under test.

    Attributes:
        graph: How to run it.
        model: Its graph.
    """

    graph: Graph
    model: ir.Model


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a file is compared with.

    Attributes:
        name: Without a folder.
        reference: Its outputs.
        specs: Inputs of the file under test, with what the source tells of them.
        traced: Axis name to a size in the source's examples.
        contender: Makes it a contender of the latency run, with the provider to report; None for an ONNX file.
        compiled: The same under ``torch.compile``.
        graph: The ONNX file it is, or None.
        yardstick: That file where it computes in half precision: its own error says how much is due to the format.
        notes: Sentences for the user.
    """

    name: str
    reference: Callable[[], Reference]
    specs: tuple[InputSpec, ...]
    traced: Mapping[str, int] = field(default_factory=dict)
    contender: tuple[MakeContender, str] | None = None
    compiled: tuple[MakeContender, str] | None = None
    graph: Graph | None = None
    yardstick: Graph | None = None
    notes: tuple[str, ...] = ()

    def parity_cases(self, reference: Reference) -> tuple[Case, ...]:
        """Shapes and masks to compare on, at sizes which the reference takes."""
        return parity_cases(*reachable(self.specs, reference.run, shown=self.traced), traced=self.traced)


def open_subject(path: str | Path, target: TargetName, *, allow_cpu_fallback: bool = False) -> Subject:
    """Read the file under test.

    Raises:
        InputError: if it is missing or no ONNX file.
    """
    place = Path(path).expanduser()
    model = open_file(place)
    libraries = libraries_of(model, target)
    graph = Graph(path=place, target=target, libraries=libraries, allow_cpu_fallback=allow_cpu_fallback)
    return Subject(graph=graph, model=model)


@contextmanager
def open_source(source: Any, subject: Subject, progress: Progress, options: SourceOptions) -> Iterator[Source]:
    """Open what the subject is compared with; torch is imported only if it is no ONNX file.

    Args:
        source: Path of an ONNX file, or what :func:`deployml.exporter.load.load` takes.
        subject: The file under test.
        progress: Shows the stage.
        options: How a torch source is opened.
    """
    if isinstance(source, str | Path) and Path(source).suffix.lower() == ".onnx":
        yield _onnx_source(Path(source).expanduser(), subject)
        return
    from .eager import Eager, eager_contender
    from .load import load

    with progress.stage("load"):
        loaded = load(source, **options.keywords())
    with loaded:
        eager = Eager(loaded, widen=True)
        examples = eager.examples()
        specs = input_specs(subject.model, examples=examples)
        _check_inputs(specs, examples, loaded.source or loaded.name)

        yield Source(
            name=loaded.source or loaded.name,
            reference=lambda: Reference(run=eager, name=eager.dtype_name, same_dtype=not eager.widened),
            specs=specs,
            traced=_traced(specs, examples),
            contender=eager_contender(loaded, subject.graph.target),
            compiled=eager_contender(loaded, subject.graph.target, compiled=True),
            notes=loaded.notes,
        )


def _onnx_source(path: Path, subject: Subject) -> Source:
    model = open_file(path)
    graph = replace(subject.graph, path=path, target="cpu", libraries=libraries_of(model, "cpu"))
    specs = input_specs(subject.model)
    names = [spec.name for spec in input_specs(model)]
    if sorted(names) != sorted(spec.name for spec in specs):
        raise _other_inputs(specs, names, path.name)

    return Source(
        name=path.name,
        reference=partial(reference_graph, graph, f"{path.name} in onnxruntime"),
        specs=specs,
        graph=graph,
        yardstick=graph if has_halves(model) else None,
    )


def _check_inputs(specs: tuple[InputSpec, ...], examples: Mapping[str, np.ndarray], source: str) -> None:
    if sorted(spec.name for spec in specs) != sorted(examples):
        raise _other_inputs(specs, list(examples), source)


def _other_inputs(specs: tuple[InputSpec, ...], names: list[str], source: str) -> InputError:
    hint = "compare a model with what it was made from; --input or --inputs name the inputs of a torch source"
    if any(spec.name.startswith("past_key_values.") for spec in specs):
        hint += ", --with-past its cache"
    return InputError(
        f"the model takes {', '.join(spec.name for spec in specs)}, {source} takes {', '.join(names)}", hint=hint
    )


def _traced(specs: tuple[InputSpec, ...], examples: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Sizes of the plain symbols in the examples: the sizes the model was most likely traced with."""
    found: dict[str, int] = {}
    for spec in specs:
        for dim, size in zip(spec.shape, examples[spec.name].shape, strict=False):
            if isinstance(dim, str) and symbols_of(dim) == (dim,):
                found.setdefault(dim, size)
    return found
