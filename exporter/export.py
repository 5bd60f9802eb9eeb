"""``deployml.export``: from a PyTorch model to a fused, checked and measured ONNX file."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..runtime.collector import few_collections
from ..runtime.isa import CpuIsa
from ..runtime.progress import Progress
from ..runtime.target import Fusion, TargetName
from .artifact import Artifact
from .finishing import Checks, begin, finish
from .keeping import check_products
from .options import ExternalData, Options, SourceOptions, picked

__all__ = ["export"]

#: torch.export, and what makes models traceable, change torch for the whole process while they run.
_TURN: Final = threading.RLock()


def export(
    module_or_path: Any,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    output: str | Path,
    dynamic_shapes: Any | None = None,
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
    inputs: Sequence[str] = (),
    inputs_file: str | Path | None = None,
    factory: str | Callable[[], Any] | None = None,
    trust_pickle: bool = False,
    allow_globals: Sequence[str] = (),
    with_past: bool = False,
    disable_fusion: Sequence[str] = (),
    external_data: ExternalData = "auto",
    allow_cpu_fallback: bool = False,
    raise_on_failure: bool = False,
    bench_seconds: float = 10.0,
    progress: bool | Progress = False,
) -> Artifact:
    """Export a PyTorch model to ONNX with every attention fused, compare it with eager, and report.

    Args:
        module_or_path: An ``nn.Module``, ``ExportedProgram`` or ``ScriptModule``, or the path of a saved one, of a
            state_dict or safetensors file (with ``factory``) or of a Hugging Face folder.
        args: Positional example inputs.
        kwargs: Example inputs by name.
        output: Path of the ONNX file. Beside it come X.report.json, X.unfused.onnx and, for large weights,
            X.onnx.data, which both graphs read.
        dynamic_shapes: What ``torch.export.export`` takes; with ``args`` or ``kwargs`` None means fixed shapes.
        target: "cpu", "cuda", "rocm" or "portable" (standard ONNX operators only).
        fuse_attention: Fuse attention and its neighbours; off, the graph is written with plain operators.
        fusion: "auto" takes the operator that was measured fastest at a site's shapes; "always" the best class of
            kernel, whatever was measured.
        cpu_isa: The processor the graph is for, "avx512", "avx2" or "portable"; None means this one.
        require_fused: "all" or a least number of fused attentions; unmet, nothing is written.
        validate: Compare the graph with the eager model over a grid of shapes and masks.
        bench: Time eager, unfused and fused in one interleaved run.
        html: Write the report as a page too, X.report.html.
        opset: ai.onnx opset, 20 to 23; None picks the target's.
        min_onnxruntime: Oldest onnxruntime the graph must load on ("1.22"); None means the installed one.
        inputs: Inputs as text, ``NAME:DTYPE[batch,seq,64]``: names are dynamic axes, numbers are fixed.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs.
        factory: ``pkg.mod:build``, ``FILE.py:FN`` or a callable that builds the module a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        with_past: Make the key-value cache of a Hugging Face decoder inputs and outputs of the graph; inputs are then
            not given. See :class:`deployml.exporter.load.past.WithPast`.
        disable_fusion: Codes or names of rules that must not run.
        external_data: Weights in a file of their own above a size ("auto"), "always" or "never".
        allow_cpu_fallback: Accept checks on the CPU where the target's provider does not come up.
        raise_on_failure: Raise ``VerdictError`` on a failed verdict, once the files are written.
        bench_seconds: Time for the latency run.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        The path and the report. A failed verdict is in the report.

    Exports in several threads take turns: torch traces one model at a time.

    Raises:
        DeploymlError: The source, the inputs or an option cannot be used; nothing is written.
        VerdictError: ``require_fused`` is unmet (nothing is written), or ``raise_on_failure``.
    """
    options = picked(Options, locals())
    opening = picked(SourceOptions, locals())
    path, resolved = begin(output, options)
    check_products(path, module_or_path, [] if inputs_file is None else [Path(inputs_file).expanduser()])
    options.check_available(resolved)
    from .tracing import load_and_translate  # torch is imported only once the options are known to be good

    examples = {"args": args, "kwargs": kwargs, "dynamic_shapes": dynamic_shapes}
    with (
        _TURN,
        few_collections(),
        Progress.of(progress) as bars,
        load_and_translate(module_or_path, opening, opset=resolved.opset, progress=bars, **examples) as traced,
    ):
        checks = Checks(
            reference=traced.reference,
            cases=traced.parity_cases,
            bench=traced.bench_cases,
            others=traced.contenders(target),
            seconds=bench_seconds,
        )
        return finish(
            "export",
            path,
            source=traced.source,
            model=traced.model,
            target=resolved,
            options=options,
            checks=checks,
            notes=traced.notes,
            progress=bars,
        )
