"""The command line: options in, one library call of the same name, one rendering out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .custom_ops import Backend
from .runtime.arguments import keywords, with_groups
from .runtime.collector import few_collections
from .runtime.errors import DeploymlError
from .runtime.failures import EXIT_INTERRUPTED, fail
from .runtime.isa import CpuIsa
from .runtime.supervise import supervised
from .runtime.target import Fusion, TargetName

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
Runs = Annotated[TargetName, typer.Option("--target", help="What the graph must run on.")]
CpuFallback = Annotated[bool, typer.Option("--allow-cpu-fallback", help="Accept checks on the CPU.")]
Slowdown = Annotated[
    float | None, typer.Option("--max-slowdown", min=0.0, help="Fail when slower than unfused by this factor.")
]
Seconds = Annotated[float, typer.Option("--seconds", min=0.1, help="Time for the latency run.")]
Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON and nothing else.")]


@dataclass(frozen=True, kw_only=True)
class Making:
    """What graph is made: of export and optimize."""

    target: Runs = "cpu"
    fuse_attention: Annotated[
        bool, typer.Option("--fuse-attention/--no-fuse-attention", help="Fuse attention and its neighbours.")
    ] = True
    fusion: Annotated[
        Fusion,
        typer.Option("--fusion", help="The operator measured fastest, or always the best class of kernel."),
    ] = "auto"
    cpu_isa: Annotated[
        CpuIsa | None, typer.Option("--cpu-isa", help="The processor the graph is for. \\[default: this one]")
    ] = None
    require_fused: Annotated[
        str | None, typer.Option("--require-fused", metavar="all|N", help="Write nothing unless so many are fused.")
    ] = None
    opset: Annotated[int | None, typer.Option("--opset", help="ai.onnx opset, 20 to 23. \\[default: the target's]")] = (
        None
    )
    min_onnxruntime: Annotated[
        str | None,
        typer.Option("--min-onnxruntime", metavar="V", help="Oldest onnxruntime. \\[default: the installed one]"),
    ] = None
    disable_fusion: Annotated[
        list[str] | None, typer.Option("--disable-fusion", metavar="RULE", help="A rule that must not run.")
    ] = None
    external_data: Annotated[
        str, typer.Option("--external-data", metavar="auto|always|never", help="Weights in a file of their own.")
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class Checking:
    """What is done with the graph that was made: of export and optimize."""

    validate: Annotated[
        bool, typer.Option(" /--no-validate", help="Skip the comparison with the source.", show_default=False)
    ] = True
    bench: Annotated[bool, typer.Option(" /--no-bench", help="Skip the timing.", show_default=False)] = True
    html: Annotated[bool, typer.Option(" /--no-html", help="Leave the report page out.", show_default=False)] = True
    bench_seconds: Annotated[float, typer.Option("--bench-seconds", min=0.1, help="Time for the latency run.")] = 10.0
    allow_cpu_fallback: CpuFallback = False


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a torch source is opened: of every command that takes one."""

    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME:DTYPE[DIMS]", help="An input, as ids:int64\\[batch,seq]; names are dynamic."
        ),
    ] = None
    inputs_file: Annotated[
        Path | None, typer.Option("--inputs", metavar="FILE", help="Example inputs, .npz or .pt.", show_default=False)
    ] = None
    factory: Annotated[
        str | None, typer.Option("--factory", metavar="MOD:FN|FILE.py:FN", help="Builds the module of a state_dict.")
    ] = None
    trust_pickle: Annotated[bool, typer.Option("--trust-pickle", help="Run whatever a pickled file asks for.")] = False
    allow_globals: Annotated[
        list[str] | None, typer.Option("--allow-global", metavar="A.B.C", help="A name a pickled file may use.")
    ] = None
    with_past: Annotated[
        bool, typer.Option("--with-past", help="Make a decoder's key-value cache inputs and outputs.")
    ] = False


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; its dataclass parameters are groups of options."""
    app.command()(with_groups(function))
    return function


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


@command
def export(
    source: Source,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="X.onnx", help="Where to write. \\[default: SOURCE's name]")
    ] = None,
    making: Making,
    opening: Opening,
    checking: Checking,
    json: Json = False,
) -> None:
    """Export a torch model to ONNX, fuse every attention, compare with eager, time it, report."""
    from .exporter.export import export as run

    place = output or _default_output(source)
    artifact = run(source, output=place, **keywords(making, opening, checking), progress=not json)
    _finish(artifact.report, json)


@command
def optimize(
    source: OnnxFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="X.onnx", help="Where to write.")],
    making: Making,
    checking: Checking,
    json: Json = False,
) -> None:
    """Fuse any ONNX file, compare it with what it was, time both, report."""
    from .exporter.optimize import optimize as run

    artifact = run(source, output=output, **keywords(making, checking), progress=not json)
    _finish(artifact.report, json)


@command
def validate(
    model: OnnxFile,
    against: Annotated[str, typer.Option("--against", metavar="SOURCE", help="What it was made from.")],
    *,
    target: Runs = "cpu",
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="Your own inputs, .npz or .pt.")] = None,
    opening: Opening,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Compare an ONNX file with its source over a grid of shapes and masks."""
    from .exporter.validate import validate as run

    where = {"target": target, "allow_cpu_fallback": allow_cpu_fallback, "data": data}
    _finish(run(model, against=against, **where, **keywords(opening), progress=not json), json)


@command
def bench(
    model: OnnxFile,
    *,
    against: Annotated[str | None, typer.Option("--against", metavar="SOURCE", help="A source to time too.")] = None,
    target: Runs = "cpu",
    seconds: Seconds = 10.0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="\\[default: all]")] = None,
    max_slowdown: Slowdown = None,
    contenders: Annotated[
        list[Path] | None, typer.Option("--contender", metavar="Y.onnx", help="Another file to time; may be repeated.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Time the source under torch.compile too.")] = False,
    memory: Annotated[bool, typer.Option("--memory", help="Measure the memory each contender takes.")] = False,
    sweep: Annotated[
        str | None, typer.Option("--sweep", metavar="AXIS=N,M ...", help="More sizes, as 'batch=1,4 sequence=32,128'.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE.html", help="Write the report as a page.")
    ] = None,
    opening: Opening,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Time an ONNX file against its unfused sibling and its source, in interleaved rounds."""
    from .exporter.bench import bench as run

    report = run(
        model,
        against=against,
        target=target,
        seconds=seconds,
        threads=threads,
        max_slowdown=max_slowdown,
        contenders=contenders or (),
        compile=compile,
        memory=memory,
        sweep=sweep,
        page=page,
        allow_cpu_fallback=allow_cpu_fallback,
        **keywords(opening),
        progress=not json,
    )
    _finish(report, json)


@command
def lock(
    model: OnnxFile,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="\\[default: X.lock.json beside it]")] = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Whether other weights differ.")] = True,
    json: Json = False,
) -> None:
    """Write down what a model is, so that check can tell what became different."""
    from .exporter.lock import lock as run

    _show(run(model, output=output, weights=weights), json)


@command
def check(
    model: OnnxFile,
    *,
    lock: Annotated[Path | None, typer.Option("--lock", help="\\[default: X.lock.json beside it]")] = None,
    against: Annotated[str | None, typer.Option("--against", metavar="SOURCE", help="Compare results too.")] = None,
    max_slowdown: Slowdown = None,
    target: Annotated[TargetName | None, typer.Option("--target", help="\\[default: what the lock says]")] = None,
    seconds: Seconds = 10.0,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Write JUnit XML.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Annotate the GitHub job and write its summary.")] = False,
    opening: Opening,
    allow_cpu_fallback: CpuFallback = False,
    json: Json = False,
) -> None:
    """Hold a model against its lock and explain every difference."""
    from .exporter.check import check as run
    from .exporter.keeping import check_output
    from .exporter.lock import lock_path
    from .runtime.integrations.ci import check_places, tell

    if junit is not None:
        check_output(junit, model, (lock or lock_path(model), against, opening.inputs_file), option="--junit")
    check_places(junit=junit, github=github)
    found = run(
        model,
        lock=lock,
        against=against,
        max_slowdown=max_slowdown,
        target=target,
        seconds=seconds,
        allow_cpu_fallback=allow_cpu_fallback,
        **keywords(opening),
        progress=not json,
    )
    _show(found, json)
    try:
        tell(found, junit=junit, github=github)
    except DeploymlError as error:  # on stderr even with --json: the report is on stdout already
        status = fail(error, ())
        raise typer.Exit(_EXIT[found.verdict] or status) from error
    raise typer.Exit(_EXIT[found.verdict])


@command
def package(
    model: OnnxFile,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="The model repository.")],
    *,
    format: Annotated[str, typer.Option("--format", metavar="triton", help="For which server.")] = "triton",
    name: Annotated[str | None, typer.Option("--name", help="\\[default: the file's]")] = None,
    version: Annotated[int, typer.Option("--version", min=1, help="Which version of the model this is.")] = 1,
    target: Annotated[TargetName | None, typer.Option("--target", help="\\[default: what it was made for]")] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=0, help="Requests the server may join; 0: none.")] = 0,
    repository: Annotated[str, typer.Option("--repository", help="Where the server sees the folder.")] = "/models",
    config: Annotated[
        str | None, typer.Option("--config", metavar="keep|replace", help="What to do with another config.pbtxt.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a model repository for a server: configuration, model, weights, op library."""
    from .exporter.package import package as run

    made = run(
        model,
        output=output,
        format=format,  # type: ignore[arg-type]  # checked by the library, with a message
        name=name,
        version=version,
        target=target,
        max_batch=max_batch,
        repository=repository,
        config=config,  # type: ignore[arg-type]  # as above
    )
    _show(made, json)


@command
def explain(
    subject: Annotated[str, typer.Argument(metavar="MODEL.onnx|RULE", show_default=False)],
    target: Runs = "cpu",
    json: Json = False,
) -> None:
    """Tell what became of each attention of a model, or what a rule does and when it declines."""
    from .exporter.explain import explain as run

    _show(run(subject, target=target, progress=not json), json)


@command
def doctor(
    model: Annotated[Path | None, typer.Option("--model", metavar="X.onnx", help="Is there room for it?")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Try what onnxruntime's attention operators can do.")] = False,
    json: Json = False,
) -> None:
    """Show versions, the targets that really work here, op libraries, and known problems."""
    from .exporter.doctor import doctor as run

    _finish(run(model=model, probe=probe), json)


@command
def kernels(
    action: Annotated[Literal["list", "test", "build"], typer.Argument(help="What to do.")] = "list",
    *,
    backend: Annotated[Backend | None, typer.Option("--backend", help="\\[default: cpu to build, all to test]")] = None,
    json: Json = False,
) -> None:
    """List the project's own op libraries, test their kernels on this machine, or build one."""
    from .exporter import kernels as own

    if action == "test":
        _finish(own.test_kernels(backend, progress=not json), json)
    _show(own.build_kernels(backend or "cpu") if action == "build" else own.kernels(), json)


@command
def ops_path(
    backend: Annotated[Backend, typer.Option("--backend", help="Whose library.")] = "cpu",
) -> None:
    """Print the path of an op library, for C++ programs and Triton."""
    from .exporter.kernels import ops_path as run

    typer.echo(run(backend))


def _default_output(source: str) -> Path:
    """model.pt -> model.onnx, a folder -> folder.onnx, in the current directory."""
    path = Path(source)
    stem = path.resolve().name if path.is_dir() else path.stem
    return Path(f"{stem or 'model'}.onnx")


def _finish(found: Any, json: bool) -> None:
    """Show a result that carries a verdict, and end with the verdict's exit status."""
    _show(found, json)
    raise typer.Exit(_EXIT[found.verdict])


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
        if arguments is None and _may_die(given):
            return supervised(__spec__.name if __spec__ else __name__, "main", given)
        with few_collections():  # from here on: to import torch makes half a million objects
            status = app(given, standalone_mode=False, prog_name="deployml")
    except (KeyboardInterrupt, Exception) as error:
        return fail(error, given)
    except SystemExit as ended:  # how typer and rich end a command whose reader is gone
        if isinstance(ended.__context__, BrokenPipeError):
            return fail(ended.__context__, given)
        raise
    if status == EXIT_INTERRUPTED:  # typer makes that of a Ctrl-C, and says nothing
        return fail(KeyboardInterrupt(), given)
    return status if isinstance(status, int) else 0


def _may_die(given: Sequence[str]) -> bool:
    """Whether a command runs anything that can take its process down: only help and the version do not."""
    return bool(sys.executable) and bool(given) and not {"-h", "--help", "--version"} & set(given)


if __name__ == "__main__":
    sys.exit(main())
