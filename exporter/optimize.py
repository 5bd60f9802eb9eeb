"""``deployml.optimize``: fuse any ONNX file, whoever exported it. Works without torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..runtime.collector import few_collections
from ..runtime.errors import DeploymlError
from ..runtime.isa import CpuIsa
from ..runtime.progress import Progress
from ..runtime.reach import reachable
from ..runtime.target import Fusion, TargetName
from .artifact import Artifact
from .feeding import bench_cases, input_specs, parity_cases
from .finishing import Checks, begin, finish
from .foreign_origins import adopt_origins
from .keeping import check_products, data_files
from .measuring import Graph, Reference
from .onnx_file import check_standard, lift_opset, read_model
from .options import ExternalData, Options, picked
from .wide_graph import reference_graph

__all__ = ["optimize"]


def optimize(
    path_or_model: Any,
    *,
    output: str | Path,
    target: TargetName = "cpu",
    fuse_attention: bool = True,
    fusion: Fusion = "auto",
    cpu_isa: CpuIsa | None = None,
    require_fused: str | int | None = None,
    validate: bool = True,
    bench: bool = False,
    html: bool = True,
    opset: int | None = None,
    min_onnxruntime: str | None = None,
    disable_fusion: Sequence[str] = (),
    external_data: ExternalData = "auto",
    allow_cpu_fallback: bool = False,
    raise_on_failure: bool = False,
    bench_seconds: float = 10.0,
    progress: bool | Progress = False,
) -> Artifact:
    """Fuse an ONNX model, compare it with the model it was made from, and report.

    Args:
        path_or_model: Path of an ONNX file, an ``onnx.ModelProto`` or an ``onnx_ir.Model`` (changed in place).
        output: Path of the result; may be the source's own.
        target: "cpu", "cuda", "rocm" or "portable" (standard ONNX operators only).
        fuse_attention: Fuse attention and its neighbours.
        fusion: "auto" takes the operator that was measured fastest at a site's shapes; "always" the best class of
            kernel, whatever was measured.
        cpu_isa: The processor the graph is for, "avx512", "avx2" or "portable"; None means this one.
        require_fused: "all" or a least number of fused attentions; unmet, nothing is written.
        validate: Compare with the given graph, run without onnxruntime's own fusions, over a grid of shapes.
        bench: Time the given graph and the fused one in one interleaved run.
        html: Write the report as a page too, X.report.html.
        opset: ai.onnx opset to convert to first; None keeps the file's, or lifts an older one to 20.
        min_onnxruntime: Oldest onnxruntime the graph must load on; None means the installed one.
        disable_fusion: Codes or names of rules that must not run.
        external_data: Weights in a file of their own above a size ("auto"), "always" or "never".
        allow_cpu_fallback: Accept checks on the CPU where the target's provider does not come up.
        raise_on_failure: Raise ``VerdictError`` on a failed verdict, once the files are written.
        bench_seconds: Time for the latency run.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        The path and the report. A failed verdict is in the report.

    Raises:
        DeploymlError: The model or an option cannot be used; nothing is written.
        VerdictError: ``require_fused`` is unmet (nothing is written), or ``raise_on_failure``.
    """
    options = picked(Options, locals())
    path, _ = begin(output, options)
    with few_collections(), Progress.of(progress) as bars:
        with bars.stage("load"):
            model, source = read_model(path_or_model)
            check_products(path, path_or_model, data_files(model))
            adopt_origins(model)
            lifted = lift_opset(model, options.opset)
            check_standard(model, source)
        resolved = replace(options.resolve(opset=model.graph.opset_imports[""]), opset=model.graph.opset_imports[""])
        options.check_available(resolved)
        specs = input_specs(model)
        checks = Checks(
            reference=partial(_given_graph, path_or_model),
            cases=lambda run: parity_cases(*reachable(specs, run)),
            bench=lambda run: bench_cases(*reachable(specs, run)),
            seconds=bench_seconds,
        )
        return finish(
            "optimize",
            path,
            source=source,
            model=model,
            target=resolved,
            options=options,
            checks=checks,
            notes=lifted,
            progress=bars,
        )


def _given_graph(given: Any, unfused: Graph) -> Reference:
    """The given file on the CPU as it is, so that conversion and folding are judged too, without onnxruntime's fusions.

    A model in memory, and a file that onnxruntime does not open, are represented by the unfused graph.
    """
    unfused = replace(unfused, target="cpu")
    if isinstance(given, str | Path):
        with suppress(DeploymlError):
            return reference_graph(replace(unfused, path=Path(given).expanduser()), "the given graph in onnxruntime")
    return reference_graph(unfused, "the unfused graph in onnxruntime")
