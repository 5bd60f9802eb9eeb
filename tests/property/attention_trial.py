"""One trial: a module of many random attentions is exported, fused and compared with eager in float64."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from deployml.custom_ops import DOMAIN, register
from deployml.passes import canonical, pipeline
from deployml.passes.evaluate import in_single
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.runtime.load_crash import optimizers_to_avoid
from deployml.runtime.report import Site
from deployml.runtime.target import Target

from .attention_graphs import build, graph_of
from .attention_heads import with_heads_moved
from .attention_judge import Judged, Run, judge
from .attention_spec import AttentionSpec

torch.set_num_threads(1)

__all__ = ["TARGETS", "Found", "Trial", "quick", "trial"]

#: What each module is fused for.
TARGETS: dict[str, Target] = {
    "cpu": Target(name="cpu", onnxruntime=(1, 31, 1), opset=21),
    "cpu-old": Target(name="cpu", onnxruntime=(1, 22), opset=20),
    "portable": Target(name="portable", onnxruntime=(1, 31, 1), opset=23),
}


@dataclass(frozen=True)
class Found:
    """What became of one attention of a trial.

    Attributes:
        spec: How it was written.
        site: Its record in the journal, None when it has none.
        judged: Whether it is right.
    """

    spec: AttentionSpec
    site: Site | None
    judged: Judged

    @property
    def problem(self) -> str:
        """A sentence when the fused module is wrong, else ""."""
        return "" if self.judged.faulty_export else self.judged.problem


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


@contextmanager
def quick(known: dict[str, Any]) -> Iterator[None]:
    """Save the time that many modules in a row need not spend.

    Every prover made inside remembers what the others have proven: equal sub-graphs of many modules. Whole-graph
    passes go unproven, which is stricter here: the result is compared with eager anyway. The garbage collector, which
    walks all graphs again and again, runs between the modules alone.
    """
    original, compare = Prover.__init__, pipeline.difference

    def make(self: Prover, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self._known = known

    Prover.__init__ = make  # type: ignore[method-assign]
    pipeline.difference = lambda *_: None  # type: ignore[attr-defined]
    gc.disable()
    try:
        yield
    finally:
        Prover.__init__ = original  # type: ignore[method-assign]
        pipeline.difference = compare  # type: ignore[attr-defined]
        gc.enable()


def _runner(model: ir.Model, dtype: str) -> Run:
    """Runs a model; one of bfloat16, for which the CPU has no kernels, as it stands in float32."""
    if dtype == "bfloat16":
        model = in_single(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    register(options, only={node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN})
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(
        data,
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=list(optimizers_to_avoid(data)) or None,
    )

    def run(given: Mapping[str, torch.Tensor]) -> Sequence[np.ndarray]:
        feeds = {i.name: given[i.name] for i in session.get_inputs()}
        wide = {n: v.float() if v.dtype == torch.bfloat16 else v for n, v in feeds.items()}
        return session.run(None, {n: v.numpy() for n, v in wide.items()})

    return run


def trial(
    specs: Sequence[AttentionSpec],
    *,
    seed: int,
    target: str = "cpu",
    exporter: str = "torch.export",
    dtype: str = "float32",
    heads: bool = False,
) -> Trial:
    """Export a module of these attentions, fuse it for a target and compare it with eager.

    ``exporter`` is one of :data:`attention_graphs.EXPORTERS`. With ``heads`` the module is fused once more with its
    heads in another order, which must change nothing.
    """
    stage, assumed = "export", [False] * len(specs)
    try:
        module = build(specs, seed).to(getattr(torch, dtype))
        aim = TARGETS[target]
        model = graph_of(module, specs, exporter=exporter, opset=aim.opset, seed=seed)
        aim = replace(aim, opset=model.graph.opset_imports[""])
        plain = model.clone()
        canonical.expand_all(plain)
        unfused = _runner(plain, dtype)
        names = _interface(model)
        stage = "pipeline"
        outcome = _fused(model, aim)
        journal = outcome.journal
        if names != _interface(outcome.model):
            return Trial(broken="interface: inputs or outputs were renamed", journal=journal)
        stage = "load"
        fused = _runner(outcome.model, dtype)
        stage = "run"
        sites = [_site(journal, n, len(specs)) for n in range(len(specs))]
        assumed = [s is not None and "fully-masked-rows" in s.assumptions for s in sites]
        moved = None
        if heads:
            again = graph_of(
                with_heads_moved(module, specs), specs, exporter=exporter, opset=TARGETS[target].opset, seed=seed
            )
            moved = _runner(_fused(again, aim).model, dtype)
        judged = judge(specs, module, fused, unfused, assumed, seed, moved)
    except Exception as error:
        if stage in ("load", "run") and not _runs(lambda: judge(specs, module, unfused, unfused, assumed, seed)):
            stage = "export"  # the graph that was handed over does not run either
        text = str(error).strip().splitlines()
        return Trial(broken=f"{stage}: {type(error).__name__}: {text[0][:200] if text else ''}")
    return Trial([Found(*each) for each in zip(specs, sites, judged, strict=True)], journal=journal)


def _fused(model: ir.Model, target: Target) -> pipeline.Outcome:
    return pipeline.run(model, target, options=pipeline.Options(simplify=False), configure=register)


def _runs(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:
        return False
    return True


def _interface(model: ir.Model) -> tuple[list[str | None], list[str | None]]:
    return [i.name for i in model.graph.inputs], [o.name for o in model.graph.outputs]


def _site(journal: Journal, number: int, count: int) -> Site | None:
    if count == 1:
        return journal.sites[0] if journal.sites else None
    return next((s for s in journal.sites if s.module_path == f"sites.{number}"), None)
