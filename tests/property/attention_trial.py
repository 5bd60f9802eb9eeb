"""One trial: a module of many random attentions is exported, fused and compared with eager in float64."""

from __future__ import annotations

import faulthandler
import linecache
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from deployml.custom_ops import register
from deployml.exporter.capture import capture
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import translate
from deployml.passes import pipeline
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.runtime.report import Site
from deployml.runtime.target import Target

from .attention_source import INPUTS, PRELUDE, module_source
from .attention_spec import WIDTH, AttentionSpec

torch.set_num_threads(1)

__all__ = ["TARGETS", "Found", "Trial", "shared_proofs", "trial"]

#: What each module is fused for.
TARGETS: dict[str, Target] = {
    "cpu": Target(name="cpu", onnxruntime=(1, 31, 1), opset=21),
    "cpu-old": Target(name="cpu", onnxruntime=(1, 22), opset=20),
    "portable": Target(name="portable", onnxruntime=(1, 31, 1), opset=23),
}
#: (batch, queries, keys) that the trace did not see; it saw (3, 7, 5).
SIZES = ((2, 9, 11), (1, 4, 13), (1, 1, 1))
#: Error granted, relative to the largest output, or this multiple of the error of eager float32.
GRANTED, FACTOR = 2e-5, 8.0
#: A row without keys holds rounding noise of its fill (1e-3 beside a fill of 1e4) when it holds a mean.
GRANTED_IN_EMPTY_ROWS = 1e-2


@dataclass(frozen=True)
class Found:
    """What became of one attention of a trial.

    Attributes:
        spec: How it was written.
        site: Its record in the journal, None when it has none.
        problem: A sentence when the fused module is wrong, else "".
        error: Largest error against float64 in rows that have keys, relative to the largest output.
        faulty_export: Whether the exported graph was wrong before anything was fused.
    """

    spec: AttentionSpec
    site: Site | None
    problem: str
    error: float
    faulty_export: bool = False


@dataclass
class Trial:
    """One fused module: what was found for each attention, or what broke.

    Attributes:
        found: One entry an attention; empty when ``broken`` is set.
        broken: Stage and message of an exception.
        journal: Everything the pipeline recorded.
    """

    found: list[Found] = field(default_factory=list)
    broken: str = ""
    journal: Journal | None = None


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
    text = PRELUDE + "\n".join(module_source(s, f"Attention{n}") for n, s in enumerate(specs))
    name = f"<attention {seed}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, Any] = {}
    exec(compile(text, name, "exec"), space)
    module = _Sites([space[f"Attention{n}"]() for n in range(len(specs))], specs).eval()
    generator = torch.Generator().manual_seed(seed)
    for label, parameter in module.named_parameters():
        shift = 1.0 if label.endswith((".nq", ".nk", ".heat")) else 0.0
        spread = 1.0 if label.endswith((".table", ".table.weight", ".sink")) else 0.25
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread + shift
    return module


def inputs(size: tuple[int, int, int], seed: int) -> dict[str, torch.Tensor]:
    """Random inputs by name for a batch, a query length and a key length."""
    batch, rows, columns = size
    g = torch.Generator().manual_seed(seed)

    def flags(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=g) > 0.3

    return {
        "x": torch.randn(batch, rows, WIDTH, generator=g),
        "y": torch.randn(batch, columns, WIDTH, generator=g),
        "tokens": flags(batch, rows).long(),
        "keys": flags(batch, columns).long(),
        "lengths": torch.randint(0, rows + 1, (batch,), generator=g),
        "segments": torch.randint(0, 3, (batch, rows), generator=g),
        "add_s": torch.randn(batch, 1, rows, rows, generator=g),
        "add_t": torch.randn(batch, 1, rows, columns, generator=g),
        "keep_s": flags(batch, 1, rows, rows),
        "keep_t": flags(batch, 1, rows, columns),
    }


def rows_with_keys(spec: AttentionSpec, given: Mapping[str, torch.Tensor]) -> np.ndarray:
    """(B, S) flags: whether the masks leave a row any key. Written apart from the modules, in numpy."""
    batch, rows = given["x"].shape[:2]
    columns = given["y"].shape[1] if spec.cross else rows
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]
    tokens = (given["keys"] if spec.cross else given["tokens"]).numpy() != 0
    lengths, segments = given["lengths"].numpy(), given["segments"].numpy()
    full = (given["keep_t"] if spec.cross else given["keep_s"]).numpy()[:, 0]
    meaning: dict[str, Callable[[], np.ndarray]] = {
        "causal": lambda: j <= i,
        "lower_right": lambda: j <= i + columns - rows,
        "padding": lambda: tokens[:, None, :],
        "lengths": lambda: (j < lengths[:, None])[:, None, :],
        "left": lambda: (j >= lengths[:, None])[:, None, :],
        "input": lambda: full,
        "window": lambda: (j <= i) & (i - j < spec.window),
        "band": lambda: np.abs(i - j) < spec.window,
        "prefix": lambda: (j <= i) | (j < spec.window),
        "block": lambda: i // spec.window == j // spec.window,
        "segments": lambda: segments[:, :, None] == segments[:, None, :],
        "queries": lambda: tokens[:, :, None] & tokens[:, None, :],
    }
    keep = np.ones((batch, rows, columns), bool)
    for name in spec.masks:
        keep = keep & meaning[name]()
    return keep.any(-1)


_AXES = {
    "x": ("b", "s", None), "y": ("b", "t", None), "tokens": ("b", "s"), "keys": ("b", "t"), "lengths": ("b",),
    "segments": ("b", "s"), "add_s": ("b", None, "s", "s"), "add_t": ("b", None, "s", "t"),
    "keep_s": ("b", None, "s", "s"), "keep_t": ("b", None, "s", "t"),
}  # fmt: skip


def _translated(module: torch.nn.Module, opset: int, exporter: str) -> ir.Model:
    return _traced(module, min(opset, 17)) if exporter == "torchscript" else _captured(module, opset)


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
        example = inputs((3, 7, 5), 0)
        torch.onnx.export(
            module,
            tuple(example[n] for n in INPUTS),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(INPUTS),
            dynamic_axes={k: {n: a for n, a in enumerate(v) if a} for k, v in _AXES.items()},
        )
    except Exception:
        return 1
    return 0


def _captured(module: torch.nn.Module, opset: int) -> ir.Model:
    dims = {name: torch.export.Dim(name) for name in "bst"}
    shapes = {k: {n: dims[a] for n, a in enumerate(axes) if a is not None} for k, axes in _AXES.items()}
    example = inputs((3, 7, 5), 0)
    with Loaded(
        module, "module", "fuzz", args=tuple(example[n] for n in INPUTS), dynamic_shapes=shapes, source="fuzz"
    ) as loaded:
        return translate(capture(loaded), opset=opset).model


@contextmanager
def shared_proofs(known: dict[str, Any]) -> Iterator[None]:
    """Let every prover made inside remember what the others have proven: equal sub-graphs of many modules."""
    original = Prover.__init__

    def make(self: Prover, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._known = known

    Prover.__init__ = make  # type: ignore[method-assign]
    try:
        yield
    finally:
        Prover.__init__ = original  # type: ignore[method-assign]


def _session(model: ir.Model) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    register(options, "cpu")
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def trial(specs: Sequence[AttentionSpec], *, seed: int, target: str = "cpu", exporter: str = "torch.export") -> Trial:
    """Export a module of these attentions, fuse it for a target and compare it with eager.

    ``exporter`` is "torch.export" (the product's own way) or "torchscript" (torch's older exporter).
    """
    module = build(specs, seed)
    stage = "export"
    try:
        aim = TARGETS[target]
        model = _translated(module, aim.opset, exporter)
        aim = replace(aim, opset=model.graph.opset_imports[""])
        baseline = _session(pipeline.baseline(model))
        names = [str(i.name) for i in model.graph.inputs], [str(o.name) for o in model.graph.outputs]
        stage = "pipeline"
        outcome = pipeline.run(
            model, aim, options=pipeline.Options(simplify=False), configure=lambda o: register(o, "cpu")
        )
        if names != (
            [str(i.name) for i in outcome.model.graph.inputs],
            [str(o.name) for o in outcome.model.graph.outputs],
        ):
            return Trial(broken="interface: inputs or outputs were renamed", journal=outcome.journal)
        stage = "load"
        session = _session(outcome.model)
        stage = "run"
        return _judged(specs, module, (session, baseline), outcome.journal, seed)
    except Exception as error:
        text = str(error).strip().splitlines()
        return Trial(broken=f"{stage}: {type(error).__name__}: {text[0][:200] if text else ''}")


def _judged(
    specs: Sequence[AttentionSpec],
    module: torch.nn.Module,
    sessions: tuple[Any, Any],
    journal: Journal,
    seed: int,
) -> Trial:
    sites = {n: _site(journal, n, len(specs)) for n in range(len(specs))}
    faulty: set[int] = set()
    problems, errors = [""] * len(specs), [0.0] * len(specs)
    for number, size in enumerate(SIZES):
        given = inputs(size, seed + number)
        outputs, unfused = (s.run(None, {i.name: given[i.name].numpy() for i in s.get_inputs()}) for s in sessions)
        with torch.no_grad():
            plain = [r.numpy() for r in module(**given)]
            module.double()
            wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
            exact = [r.numpy() for r in module(**wide)]
            module.float()
        position = 0
        for index, spec in enumerate(specs):
            for kind in ("output", "weights")[: 1 + spec.weights]:
                alive = _alive(spec, kind, rows_with_keys(spec, given), exact[position].ndim)
                site = sites[index]
                assumed = site is not None and "fully-masked-rows" in site.assumptions
                error, problem = _compare(outputs[position], plain[position], exact[position], alive, assumed=assumed)
                errors[index] = max(errors[index], error)
                if problem and _compare(unfused[position], plain[position], exact[position], alive, assumed=assumed)[1]:
                    faulty.add(index)  # the export is at fault, before anything was fused
                elif problem and not problems[index]:
                    problems[index] = f"{kind} at batch, queries, keys {size}: {problem}"
                position += 1
    found = [
        Found(s, sites[n], "" if n in faulty else problems[n], errors[n], n in faulty) for n, s in enumerate(specs)
    ]
    return Trial(found, journal=journal)


def _site(journal: Journal, number: int, count: int) -> Site | None:
    if count == 1:
        return journal.sites[0] if journal.sites else None
    return next((s for s in journal.sites if s.module_path == f"sites.{number}"), None)


def _alive(spec: AttentionSpec, kind: str, alive: np.ndarray, rank: int) -> np.ndarray:
    """The (B, S) flags in the axes of a result."""
    if kind == "output":
        return (alive.T if spec.time_first else alive)[..., None]
    if rank == 3:  # (B * N, S, T)
        return np.repeat(alive, spec.heads, axis=0)[..., None]
    if spec.product == "einsum" and spec.letters == "hbqk":
        return alive[None, :, :, None]
    if spec.product == "einsum" and spec.letters == "bqhk":
        return alive[:, :, None, None]
    return alive[:, None, :, None]


def _compare(
    fused: np.ndarray, plain: np.ndarray, exact: np.ndarray, alive: np.ndarray, *, assumed: bool
) -> tuple[float, str]:
    """(error in rows with keys, a sentence when the result is wrong)."""
    if fused.shape != plain.shape or fused.dtype != plain.dtype:
        return (
            0.0,
            f"the result is {fused.dtype}{list(fused.shape)}, eager gives {plain.dtype}{list(plain.shape)}",
        )
    where = np.broadcast_to(alive, fused.shape)
    if not np.isfinite(exact[where]).all() or not np.isfinite(plain[where]).all():
        return 0.0, "eager itself is not finite in rows with keys: the module is no fair trial"
    largest = float(np.max(np.abs(exact[where]), initial=0.0)) or 1.0
    error = float(np.max(np.abs(fused[where] - exact[where]), initial=0.0)) / largest
    own = float(np.max(np.abs(plain[where] - exact[where]), initial=0.0)) / largest
    if not error <= max(GRANTED, FACTOR * own):
        return error, f"off by {error:.1e} of the largest output (eager float32: {own:.1e})"
    empty = ~where
    if assumed or not empty.any():
        return error, ""
    if not np.array_equal(np.isnan(fused[empty]), np.isnan(plain[empty])):
        return error, "NaN in other rows without keys, and no assumption says so"
    apart = float(np.nanmax(np.abs(np.where(empty & ~np.isnan(plain), fused - plain, 0.0)), initial=0.0)) / largest
    if apart > GRANTED_IN_EMPTY_ROWS:
        return error, f"rows without keys differ by {apart:.1e} from eager, and no assumption says so"
    return error, ""
