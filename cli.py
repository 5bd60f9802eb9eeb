"""The command line: options in, one library call of the same name, one rendering out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .runtime.failures import fail
from .runtime.target import TargetName

if TYPE_CHECKING:
    from .runtime.report import Report

__all__ = ["app", "main"]

app = typer.Typer(
    name="deployml",
    help="PyTorch transformers to ONNX, with every attention fused, proven and explained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXIT = {"pass": 0, "not-run": 0, "fail": 1, "inconclusive": 3}
_FORMS = "A torch model: .pt, .pt2, TorchScript, state_dict, .safetensors, or a Hugging Face folder."

Source = Annotated[str, typer.Argument(metavar="SOURCE", help=_FORMS, show_default=False)]
OnnxFile = Annotated[Path, typer.Argument(metavar="X.onnx", help="An ONNX file.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="X.onnx", help="Where to write. [default: SOURCE's name]")
]
Target = Annotated[TargetName, typer.Option("--target", help="What the graph must run on.")]
Fuse = Annotated[bool, typer.Option("--fuse-attention/--no-fuse-attention", help="Fuse attention and its neighbours.")]
Opset = Annotated[int | None, typer.Option("--opset", help="ai.onnx opset, 20 to 23. [default: the target's]")]
MinRuntime = Annotated[
    str | None, typer.Option("--min-onnxruntime", metavar="V", help="Oldest onnxruntime. [default: the installed one]")
]
Inputs = Annotated[
    list[str] | None,
    typer.Option("--input", metavar="NAME:DTYPE[DIMS]", help="An input, as ids:int64[batch,seq]; names are dynamic."),
]
InputsFile = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE", help="Example inputs, .npz or .pt.", show_default=False)
]
Factory = Annotated[
    str | None, typer.Option("--factory", metavar="MOD:FN|FILE.py:FN", help="Builds the module of a state_dict.")
]
TrustPickle = Annotated[bool, typer.Option("--trust-pickle", help="Run whatever a pickled file asks for.")]
AllowGlobal = Annotated[
    list[str] | None, typer.Option("--allow-global", metavar="A.B.C", help="A name a pickled file may use.")
]
RequireFused = Annotated[
    str | None, typer.Option("--require-fused", metavar="all|N", help="Write nothing unless so many are fused.")
]
DisableFusion = Annotated[
    list[str] | None, typer.Option("--disable-fusion", metavar="RULE", help="A rule that must not run.")
]
ExternalData = Annotated[
    str, typer.Option("--external-data", metavar="auto|always|never", help="Weights in a file of their own.")
]
NoValidate = Annotated[bool, typer.Option("--no-validate", help="Skip the comparison with the source.")]
NoBench = Annotated[bool, typer.Option("--no-bench", help="Skip the timing.")]
NoHtml = Annotated[bool, typer.Option("--no-html", help="Leave the report page out.")]
BenchSeconds = Annotated[float, typer.Option("--bench-seconds", min=0.1, help="Time for the latency run.")]
CpuFallback = Annotated[bool, typer.Option("--allow-cpu-fallback", help="Accept checks on the CPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")]


def _show_version(value: bool) -> None:
    if value:
        from . import __version__

        typer.echo(f"deployml {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
) -> None:
    del version, debug  # --debug is read by main, which also sees errors that come before this


@app.command()
def export(
    source: Source,
    output: Output = None,
    target: Target = "cpu",
    fuse_attention: Fuse = True,
    require_fused: RequireFused = None,
    inputs: Inputs = None,
    inputs_file: InputsFile = None,
    factory: Factory = None,
    trust_pickle: TrustPickle = False,
    allow_globals: AllowGlobal = None,
    opset: Opset = None,
    min_onnxruntime: MinRuntime = None,
    disable_fusion: DisableFusion = None,
    external_data: ExternalData = "auto",
    no_validate: NoValidate = False,
    no_bench: NoBench = False,
    no_html: NoHtml = False,
    bench_seconds: BenchSeconds = 10.0,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Export a torch model to ONNX, fuse every attention, compare with eager, time it, report."""
    from .exporter.export import export as run

    artifact = run(
        source,
        output=output or _default_output(source),
        target=target,
        fuse_attention=fuse_attention,
        require_fused=require_fused,
        inputs=inputs or (),
        inputs_file=inputs_file,
        factory=factory,
        trust_pickle=trust_pickle,
        allow_globals=allow_globals or (),
        opset=opset,
        min_onnxruntime=min_onnxruntime,
        disable_fusion=disable_fusion or (),
        external_data=external_data,  # type: ignore[arg-type]  # checked by the library, with a message
        validate=not no_validate,
        bench=not no_bench,
        html=not no_html,
        bench_seconds=bench_seconds,
        allow_cpu_fallback=allow_cpu_fallback,
        progress=not json,
    )
    _finish(artifact.report, json)


@app.command()
def optimize(
    source: OnnxFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="X.onnx", help="Where to write.")],
    target: Target = "cpu",
    fuse_attention: Fuse = True,
    require_fused: RequireFused = None,
    opset: Opset = None,
    min_onnxruntime: MinRuntime = None,
    disable_fusion: DisableFusion = None,
    external_data: ExternalData = "auto",
    no_validate: NoValidate = False,
    no_bench: NoBench = False,
    no_html: NoHtml = False,
    bench_seconds: BenchSeconds = 10.0,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Fuse any ONNX file, compare it with what it was, time both, report."""
    from .exporter.optimize import optimize as run

    artifact = run(
        source,
        output=output,
        target=target,
        fuse_attention=fuse_attention,
        require_fused=require_fused,
        opset=opset,
        min_onnxruntime=min_onnxruntime,
        disable_fusion=disable_fusion or (),
        external_data=external_data,  # type: ignore[arg-type]
        validate=not no_validate,
        bench=not no_bench,
        html=not no_html,
        bench_seconds=bench_seconds,
        allow_cpu_fallback=allow_cpu_fallback,
        progress=not json,
    )
    _finish(artifact.report, json)


@app.command()
def validate(
    model: OnnxFile,
    against: Annotated[str, typer.Option("--against", metavar="SOURCE", help="What it was made from.")],
    target: Target = "cpu",
    inputs: Inputs = None,
    inputs_file: InputsFile = None,
    factory: Factory = None,
    trust_pickle: TrustPickle = False,
    allow_globals: AllowGlobal = None,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Compare an ONNX file with its source over a grid of shapes and masks."""
    from .exporter.validate import validate as run

    report = run(
        model,
        against=against,
        target=target,
        inputs=inputs or (),
        inputs_file=inputs_file,
        factory=factory,
        trust_pickle=trust_pickle,
        allow_globals=allow_globals or (),
        allow_cpu_fallback=allow_cpu_fallback,
        progress=not json,
    )
    _finish(report, json)


@app.command()
def bench(
    model: OnnxFile,
    against: Annotated[str | None, typer.Option("--against", metavar="SOURCE", help="A source to time too.")] = None,
    target: Target = "cpu",
    inputs: Inputs = None,
    inputs_file: InputsFile = None,
    factory: Factory = None,
    trust_pickle: TrustPickle = False,
    allow_globals: AllowGlobal = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for all of it.")] = 10.0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="[default: all]")] = None,
    max_slowdown: Annotated[
        float | None, typer.Option("--max-slowdown", min=0.0, help="Fail when slower than unfused by this factor.")
    ] = None,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Time an ONNX file against its unfused sibling and its source, in interleaved rounds."""
    from .exporter.bench import bench as run

    report = run(
        model,
        against=against,
        target=target,
        inputs=inputs or (),
        inputs_file=inputs_file,
        factory=factory,
        trust_pickle=trust_pickle,
        allow_globals=allow_globals or (),
        seconds=seconds,
        threads=threads,
        max_slowdown=max_slowdown,
        allow_cpu_fallback=allow_cpu_fallback,
        progress=not json,
    )
    _finish(report, json)


@app.command()
def lock(
    model: OnnxFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="[default: X.lock.json beside it]")] = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Whether other weights differ.")] = True,
    json: Json = False,
) -> None:
    """Write down what a model is, so that check can tell what became different."""
    from .exporter.lock import lock as run

    _show(run(model, output=output, weights=weights), json)


@app.command()
def check(
    model: OnnxFile,
    lock: Annotated[Path | None, typer.Option("--lock", help="[default: X.lock.json beside it]")] = None,
    against: Annotated[str | None, typer.Option("--against", metavar="SOURCE", help="Compare results too.")] = None,
    max_slowdown: Annotated[
        float | None, typer.Option("--max-slowdown", min=0.0, help="Time it; fail when slower than unfused by this.")
    ] = None,
    target: Annotated[TargetName | None, typer.Option("--target", help="[default: what the lock says]")] = None,
    inputs: Inputs = None,
    inputs_file: InputsFile = None,
    factory: Factory = None,
    trust_pickle: TrustPickle = False,
    allow_globals: AllowGlobal = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time for the timing.")] = 10.0,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Annotate the GitHub job and write its summary.")] = False,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Hold a model against its lock and explain every difference."""
    from .exporter.check import check as run
    from .runtime.integrations.ci import tell

    found = run(
        model,
        lock=lock,
        against=against,
        max_slowdown=max_slowdown,
        target=target,
        inputs=inputs or (),
        inputs_file=inputs_file,
        factory=factory,
        trust_pickle=trust_pickle,
        allow_globals=allow_globals or (),
        allow_cpu_fallback=allow_cpu_fallback,
        seconds=seconds,
        progress=not json,
    )
    tell(found, junit=junit, github=github)
    _show(found, json)
    raise typer.Exit(_EXIT[found.verdict])


@app.command()
def explain(
    subject: Annotated[str, typer.Argument(metavar="MODEL.onnx|RULE", show_default=False)],
    target: Target = "cpu",
    json: Json = False,
) -> None:
    """Tell what became of each attention of a model, or what a rule does and when it declines."""
    from .exporter.explain import explain as run

    _show(run(subject, target=target, progress=not json), json)


@app.command()
def doctor(json: Json = False) -> None:
    """Show versions, the targets that really work here, op libraries, and known problems."""
    from .exporter.doctor import doctor as run

    diagnosis = run()
    _show(diagnosis, json)
    raise typer.Exit(_EXIT[diagnosis.verdict])


@app.command()
def kernels(json: Json = False) -> None:
    """List the project's own op libraries and whether they are built."""
    from .exporter.kernels import kernels as run

    _show(run(), json)


def _default_output(source: str) -> Path:
    """model.pt -> model.onnx, a folder -> folder.onnx, in the current directory."""
    path = Path(source)
    stem = path.resolve().name if path.is_dir() else path.stem
    return Path(f"{stem or 'model'}.onnx")


def _finish(report: Report, json: bool) -> None:
    _show(report, json)
    raise typer.Exit(_EXIT[report.verdict])


def _show(value: Any, json: bool) -> None:
    if json:
        typer.echo(value.to_json())
        return
    from .exporter.showing import show

    show(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 good, 1 verdict failed, 2 yours, 3 inconclusive, 70 ours."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = app(given, standalone_mode=False, prog_name="deployml")
    except (KeyboardInterrupt, Exception) as error:
        return fail(error, given)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
