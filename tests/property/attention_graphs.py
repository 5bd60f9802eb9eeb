"""The graph of a module of many attentions, by the product's own export, torch's older one, or a quick writer."""

from __future__ import annotations

import faulthandler
import linecache
import os
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from deployml.exporter.capture import capture
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import translate

from .attention_feed import AXES, inputs
from .attention_source import INPUTS, PRELUDE, module_source
from .attention_spec import AttentionSpec
from .onnx_tape import Dialect
from .onnx_torch import written

__all__ = ["EXPORTERS", "build", "graph_of"]

#: Ways to a graph: the product's own; torch's older exporter; modules that write their own nodes, spelled at random.
EXPORTERS = ("torch.export", "torchscript", "written")
#: What the traces see.
_TRACED = (3, 7, 5)


class _Sites(torch.nn.Module):
    def __init__(self, sites: Sequence[torch.nn.Module], specs: Sequence[AttentionSpec]) -> None:
        super().__init__()
        self.sites = torch.nn.ModuleList(sites)
        self.time_first = [s.time_first for s in specs]

    def forward(
        self, x: Any, y: Any, tokens: Any, keys: Any, lengths: Any, segments: Any, add_s: Any, add_t: Any,
        keep_s: Any, keep_t: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        results = []
        for site, first in zip(self.sites, self.time_first, strict=True):
            a, b = (x.transpose(0, 1), y.transpose(0, 1)) if first else (x, y)
            result = site(a, b, tokens, keys, lengths, segments, add_s, add_t, keep_s, keep_t)
            results.extend(result if isinstance(result, tuple) else (result,))
        return tuple(results)


def build(specs: Sequence[AttentionSpec], seed: int) -> torch.nn.Module:
    """The module of these attentions, every weight re-drawn."""
    text = _text(specs)
    name = f"<attention {seed}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {}
    exec(compile(text, name, "exec"), space)
    module = _Sites([space[f"Attention{n}"]() for n in range(len(specs))], specs).eval()
    generator = torch.Generator().manual_seed(seed)
    for label, parameter in module.named_parameters():
        shift = 1.0 if label.endswith((".nq", ".nk", ".heat")) else 0.0
        spread = (
            1.0
            if label.endswith(
                (".table", ".table.weight", ".sink", ".rel", ".place", ".mk", ".mv", ".talk_in", ".talk.weight")
            )
            else 0.25
        )
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + shift
    return module


def _text(specs: Sequence[AttentionSpec]) -> str:
    return PRELUDE + "\n".join(module_source(s, f"Attention{n}") for n, s in enumerate(specs))


def graph_of(
    module: torch.nn.Module, specs: Sequence[AttentionSpec], *, exporter: str, opset: int, seed: int
) -> ir.Model:
    """The graph of what :func:`build` made, at most of an operator set."""
    if exporter == "torchscript":
        return _traced(module, min(opset, 17))
    return _written(module, specs, opset, seed) if exporter == "written" else _captured(module, opset)


def _written(module: torch.nn.Module, specs: Sequence[AttentionSpec], opset: int, seed: int) -> ir.Model:
    rng = random.Random(seed)
    dialect = Dialect.draw(rng, opset if opset >= 23 else rng.choice((17, opset)))
    dtype = next(module.parameters()).dtype
    given = inputs(_TRACED, 0, dtype)
    return written(list(module.sites), [s.time_first for s in specs], _text(specs), given, AXES, dialect)  # type: ignore[arg-type]


def _traced(module: torch.nn.Module, opset: int) -> ir.Model:
    """The graph of torch's older exporter: a file from elsewhere, attention in plain operators.

    It is made in a child process: that exporter crashes on some modules.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "traced.onnx")
        child = os.fork()
        if child == 0:
            os._exit(_write_traced(module, opset, path))
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"torch's older exporter ended with status {status}")
        return ir.from_proto(onnx.load(path))


def _write_traced(module: torch.nn.Module, opset: int, path: Path) -> int:
    """Export, as the only thing a process does. Returns its exit code."""
    faulthandler.disable()
    for stream in (1, 2):  # the exporter prints whole graphs before it raises
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        example = inputs(_TRACED, 0, next(module.parameters()).dtype)
        torch.onnx.export(
            module,
            tuple(example[n] for n in INPUTS),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(INPUTS),
            dynamic_axes={k: {n: a for n, a in enumerate(v) if a} for k, v in AXES.items()},
        )
    except Exception:
        return 1
    return 0


def _captured(module: torch.nn.Module, opset: int) -> ir.Model:
    dims = {name: torch.export.Dim(name) for name in "bst"}
    shapes = {k: {n: dims[a] for n, a in enumerate(axes) if a is not None} for k, axes in AXES.items()}
    example = inputs(_TRACED, 0, next(module.parameters()).dtype)
    with Loaded(
        module, "module", "fuzz", args=tuple(example[n] for n in INPUTS), dynamic_shapes=shapes, source="fuzz"
    ) as loaded:
        return translate(capture(loaded), opset=opset).model
