"""Exports one model of the zoo through the product's own functions and compares it with eager float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from deployml import custom_ops
from deployml.exporter.capture import capture, check_dynamic
from deployml.exporter.load import load
from deployml.exporter.translate import translate
from deployml.passes import pipeline
from deployml.passes.journal import Journal
from deployml.runtime.report import Site
from deployml.runtime.target import Target

from .entry import CASES, TRACED, Case, Entry, Sample

__all__ = ["OPSET", "TOLERANCE", "Exported", "Parity", "Result", "compare", "exported", "run"]

OPSET = 21
#: Of the largest value of an output.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Parity:
    """The largest differences over all cases, relative to the largest value of the output.

    Attributes:
        real: At real positions.
        padded: At padded ones, which may hold anything.
        worst: The case and output of the largest real difference.
    """

    real: float
    padded: float
    worst: str


@dataclass(frozen=True)
class Result:
    """What became of one model.

    Attributes:
        sites: Every attention.
        nodes: Nodes of the fused graph.
        unfused: Nodes of the graph with plain attention.
        parity: Against eager float32.
        grouped: Fused nodes (GroupQueryAttention, or the own operator) with fewer key/value heads than query heads.
        journal: What the passes did.
    """

    sites: tuple[Site, ...]
    nodes: int
    unfused: int
    parity: Parity
    grouped: int
    journal: Journal = field(repr=False)

    @property
    def fused(self) -> int:
        """Number of sites that became one node."""
        return sum(site.status == "fused" for site in self.sites)

    @property
    def declined(self) -> tuple[Site, ...]:
        """The others."""
        return tuple(site for site in self.sites if site.status == "declined")


@dataclass(frozen=True)
class Exported:
    """A fused graph with what it came from."""

    model: ir.Model
    journal: Journal
    unfused: int
    outputs: tuple[str, ...]


def run(entry: Entry, impl: str) -> Result:
    """Build, export, fuse and compare one model.

    Raises:
        Unavailable: the installed transformers has no such model or implementation.
        DeploymlError: the export refused it.
    """
    module = entry.build(impl)
    made = exported(entry, module)
    parity = compare(entry, module, made.model)
    grouped = sum(_shares_heads(node) for node in made.model.graph.all_nodes())
    return Result(
        sites=tuple(made.journal.sites),
        nodes=made.model.graph.num_nodes(),
        unfused=made.unfused,
        parity=parity,
        grouped=grouped,
        journal=made.journal,
    )


def _shares_heads(node: ir.Node) -> bool:
    """Whether a fused attention reads fewer key/value heads than it has query heads."""
    for name in ("kv_num_heads", "kv_heads"):
        if name in node.attributes and "num_heads" in node.attributes:
            return node.attributes[name].as_int() < node.attributes["num_heads"].as_int()
    return False


def exported(entry: Entry, module: nn.Module) -> Exported:
    """The fused graph of a module."""
    sample = entry.inputs.sample(TRACED, torch.Generator().manual_seed(3))
    with load(module, kwargs=sample.kwargs, dynamic_shapes=_dynamic_shapes(entry, sample)) as loaded:
        captured = capture(loaded)
        check_dynamic(loaded, captured)
        translated = translate(captured, opset=OPSET)
        version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:3])
        unfused = pipeline.baseline(translated.model).graph.num_nodes()
        outcome = pipeline.run(
            translated.model,
            Target(name="cpu", onnxruntime=version, opset=OPSET, cpu_isa="avx512"),
            configure=custom_ops.register,
        )
    return Exported(outcome.model, outcome.journal, unfused, captured.output_names)


def _dynamic_shapes(entry: Entry, sample: Sample) -> dict[str, Any]:
    names = sorted({name for axes in entry.inputs.axes.values() for name in axes.values()})
    sizes = {name: torch.export.Dim(name) for name in names}
    return {
        name: {axis: sizes[label] for axis, label in entry.inputs.axes[name].items()}
        if name in entry.inputs.axes
        else None
        for name in sample.kwargs
    }


def compare(entry: Entry, module: nn.Module, model: ir.Model) -> Parity:
    """Compare a graph with the module it came from, on shapes and paddings the trace did not see."""
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    worst, padded, where = 0.0, 0.0, ""
    compared = 0
    for number, case in enumerate(_cases(entry)):
        sample = entry.inputs.sample(case, torch.Generator().manual_seed(100 + number))
        expected = _eager(module, sample)
        feeds = {n: v.numpy() for n, v in sample.kwargs.items() if isinstance(v, Tensor)}
        needed = {i.name for i in session.get_inputs()}
        found = session.run(None, {n: v for n, v in feeds.items() if n in needed})
        names = [o.name for o in session.get_outputs()]
        assert len(found) == len(expected), f"{len(found)} outputs ({names}), eager has {len(expected)}"
        for name, left, right in zip(names, found, expected, strict=True):
            real, other = _difference(left, right.numpy(), sample.keeps)
            compared += right.numel()
            padded = max(padded, other)
            if real > worst:
                worst, where = real, f"{name} at {case}"
    assert compared, "no output was compared"
    return Parity(worst, padded, where)


def _cases(entry: Entry) -> Sequence[Case]:
    return [c if c.padding in entry.inputs.paddings else Case(c.batch, c.length, "none") for c in CASES]


def _eager(module: nn.Module, sample: Sample) -> list[Tensor]:
    with torch.no_grad():
        return list(_tensors(module(**sample.kwargs)))


def _tensors(output: Any) -> Sequence[Tensor]:
    """The tensors of an output in order; caches have none."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [t for value in output.values() for t in _tensors(value)]
    if isinstance(output, (tuple, list)):
        return [t for value in output for t in _tensors(value)]
    return []


def _difference(found: np.ndarray, expected: np.ndarray, keeps: Sequence[Tensor]) -> tuple[float, float]:
    """(at real positions, at padded ones); a NaN where eager has none counts as infinite."""
    if found.shape != expected.shape:
        return np.inf, np.inf
    if not np.issubdtype(expected.dtype, np.floating):
        return (0.0 if np.array_equal(found, expected) else np.inf), 0.0
    keep = next((k.numpy() for k in keeps if tuple(k.shape) == expected.shape[:2]), None)
    finite = np.isfinite(expected) if keep is None else np.isfinite(expected) & _wide(keep, expected)
    largest = float(np.abs(expected[finite]).max(initial=0.0)) or 1.0
    off = np.abs(found.astype(np.float64) - expected)
    off[np.isnan(found) & np.isnan(expected)] = 0.0
    off = np.nan_to_num(off, nan=np.inf, posinf=np.inf) / largest
    off[(found == expected)] = 0.0
    if keep is None:
        return float(off.max(initial=0.0)), 0.0
    return float(off[keep].max(initial=0.0)), float(off[~keep].max(initial=0.0))


def _wide(keep: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.broadcast_to(keep.reshape(*keep.shape, *[1] * (like.ndim - 2)), like.shape)
