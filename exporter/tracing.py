"""The torch half of an export: load, trace, translate, and stand by as reference and contender.

Importing this module imports torch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..runtime.attempt import Runner
from ..runtime.feeds import Case, InputSpec
from ..runtime.progress import Progress
from ..runtime.reach import Limits, reachable
from ..runtime.target import TargetName
from ..runtime.together import together
from .capture import capture, check_dynamic
from .capture.captured import Captured
from .capture.written_state import state_notes
from .eager import Eager, eager_contender
from .feeding import bench_cases, input_specs, parity_cases
from .inputs.vocabulary import vocabulary_of
from .load import load
from .loaded import Loaded
from .measuring import Graph, MakeContender, Reference
from .options import SourceOptions
from .translate import translate

__all__ = ["Traced", "load_and_translate"]


@dataclass(frozen=True)
class Traced:
    """A torch model and the graph it became.

    Attributes:
        loaded: The model with its example inputs.
        captured: The traced program.
        model: The graph, attention calls as canonical nodes; the passes change it in place.
        specs: Its inputs with roles and bounds.
        notes: Sentences for the user.
    """

    loaded: Loaded
    captured: Captured
    model: ir.Model
    specs: tuple[InputSpec, ...]
    notes: tuple[str, ...]

    @property
    def source(self) -> str:
        """What it was made from, without a folder."""
        return self.loaded.source or self.loaded.name

    def reference(self, unfused: Graph) -> Reference:
        """The eager model; half precision is computed in float32."""
        del unfused
        eager = Eager(self.loaded, widen=True)
        return Reference(run=eager, name=eager.dtype_name, same_dtype=not eager.widened)

    def parity_cases(self, run: Runner) -> tuple[Case, ...]:
        """Shapes that the trace did not see and ``run`` takes, and masks."""
        specs, limits, sizes = self._axes(run)
        return parity_cases(specs, limits, traced=sizes)

    def bench_cases(self, run: Runner) -> tuple[Case, ...]:
        """Inputs of the timed run, the wish first, at sizes which ``run`` takes."""
        specs, limits, sizes = self._axes(run)
        return bench_cases(specs, limits, traced=sizes)

    def _axes(self, run: Runner) -> tuple[tuple[InputSpec, ...], Limits, dict[str, int]]:
        """Inputs, their axes apart as far as the model allows, bounds of the axes, and their sizes in the example."""
        shown = _traced_sizes(self)
        specs = together(self.specs, shown, run)
        return *reachable(specs, run, shown=shown, limits=axis_limits(self.captured)), shown

    def contenders(self, target: TargetName) -> dict[str, tuple[MakeContender, str]]:
        """Eager torch, for the latency run."""
        return {"eager": eager_contender(self.loaded, target)}


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leave the random numbers of the process as they were: packages that are first imported here draw some."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextmanager
def load_and_translate(
    source: Any, options: SourceOptions, *, opset: int, progress: Progress, **examples: Any
) -> Iterator[Traced]:
    """Load a model, trace it and translate it; a caller's module is put back when the block is left.

    Args:
        source: See :func:`deployml.export`.
        options: How the source is opened.
        opset: ai.onnx opset of the graph.
        progress: Shows and times the stages.
        examples: ``args``, ``kwargs`` and ``dynamic_shapes`` of :func:`deployml.exporter.load.load`.
    """
    with ExitStack() as stack:
        stack.enter_context(_generators_kept())
        with progress.stage("load"):
            loaded = stack.enter_context(load(source, **options.keywords(), **examples))
        with progress.stage("trace"):
            captured = capture(loaded)
            written = state_notes(captured.program)
        with progress.stage("check axes"):
            checked = check_dynamic(loaded, captured)
        with progress.stage("translate"):
            translated = translate(captured, opset=opset)
        specs = input_specs(translated.model, examples=Eager(loaded).examples(), bound=_index_bound(loaded))
        notes = tuple(dict.fromkeys([*loaded.notes, *captured.notes, *written, *checked, *translated.notes]))
        yield Traced(loaded, captured, translated.model, specs, notes)


def axis_limits(captured: Captured) -> Limits:
    """Axis name to the sizes the program was traced for."""
    found: dict[str, tuple[int, int | None]] = {}
    for symbol, bounds in captured.program.range_constraints.items():
        name = captured.axis_names.get(str(symbol))
        if name is None:
            continue
        upper = int(bounds.upper) if bounds.upper.is_Integer else None  # sympy's and torch's infinities are not
        found[name] = (max(1, int(bounds.lower)), upper)
    return found


def _traced_sizes(traced: Traced) -> dict[str, int]:
    """Axis name to its size in the example inputs."""
    examples: Mapping[str, np.ndarray] = Eager(traced.loaded).examples()
    return {
        name: examples[tensor].shape[axis]
        for tensor, axes in traced.captured.dynamic_axes.items()
        for axis, name in axes.items()
        if tensor in examples
    }


def _index_bound(loaded: Loaded) -> int | None:
    """A bound that every embedding table of a module honours; None for programs, whose graph shows it."""
    return vocabulary_of(loaded.module).indices if loaded.kind == "module" else None
