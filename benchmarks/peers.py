"""deployml beside the tools that do part of its job, each on the very same ONNX export.

    python benchmarks/peers.py                  # all models, writes benchmarks/results/peers.md
    python benchmarks/peers.py bert llama       # some of them, printed only

torch.onnx.export writes one file for each model (opset 20, dynamic batch and length); every tool starts from that file,
save "deployml export", which starts from the module. Sites are attentions of one node. The error is against eager
float32 at 4x128 with padding, relative to the largest output. A ratio is the median over interleaved rounds of (the
tool's time / deployml optimize's time) with its 95 % interval, in processor time of one thread: above 1 the tool's
graph is the slower one. Tool time is that of the tool alone. A tool that is not installed or fails says so.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodes
import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import nn

from deployml.custom_ops import register
from deployml.exporter.capture.outputs import flatten_outputs
from deployml.exporter.foreign_origins import adopt_origins
from deployml.passes import pipeline
from deployml.runtime.compare import relative_error
from deployml.runtime.latency import bench, bound_runner
from deployml.runtime.report import Ratio
from deployml.runtime.target import Target

CHOSEN = (
    "bert",
    "gpt2",
    "llama",
    "qwen3",
    "vit",
    "clip-text",
    "bart",
    "nn.TransformerEncoder",
    "hand-nanogpt",
    "hand-einsum",
)
SHAPES = ((1, 16), (1, 128), (4, 128))
BASE = "deployml optimize"
#: What onnxruntime.transformers calls the kinds of model it has patterns for; "bert" is its default.
KINDS = {"gpt2": "gpt2", "vit": "vit", "clip-text": "clip", "bart": "bart"}

Tool = Callable[[Path, str, nn.Module], ir.Model]


def _unfused(path: Path, name: str, module: nn.Module) -> ir.Model:
    return ir.load(path)


def _deployml(path: Path, name: str, module: nn.Module) -> ir.Model:
    model = ir.load(path)
    adopt_origins(model)
    target = Target(name="cpu", onnxruntime=(1, 31, 1), opset=nodes.OPSET)
    return pipeline.run(model, target, configure=lambda options: register(options, "cpu")).model


def _deployml_export(path: Path, name: str, module: nn.Module) -> ir.Model:
    return nodes.ours(module, nodes.MODELS[name])[0]


def _onnxscript(path: Path, name: str, module: nn.Module) -> ir.Model:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model = ir.load(path)
    optimize_for_ort(model)
    return model


def _ort_transformers(path: Path, name: str, module: nn.Module) -> ir.Model:
    from onnxruntime.transformers import optimizer

    heads, width = nodes.HEADS, nodes.WIDTH
    found = optimizer.optimize_model(
        str(path), KINDS.get(name, "bert"), num_heads=heads, hidden_size=width, opt_level=0
    )
    return ir.serde.deserialize_model(found.model)


def _onnxslim(path: Path, name: str, module: nn.Module) -> ir.Model:
    import onnxslim

    return ir.serde.deserialize_model(onnxslim.slim(str(path)))


#: Name -> the package it needs, and how to run it.
TOOLS: dict[str, tuple[str, Tool]] = {
    "unfused": ("onnx_ir", _unfused),
    "deployml optimize": ("deployml", _deployml),
    "deployml export": ("deployml", _deployml_export),
    "optimize_for_ort": ("onnxscript", _onnxscript),
    "onnxruntime.transformers": ("onnxruntime", _ort_transformers),
    "onnxslim": ("onnxslim", _onnxslim),
}


def exported(name: str, module: nn.Module, folder: Path) -> Path:
    """torch's own ONNX export of a module."""
    model = nodes.MODELS[name]
    feed = model.feed(3, 7)
    positional = isinstance(module, nn.Sequential)
    shapes: Any = tuple(nodes._shapes(model).values()) if positional else nodes._shapes(model)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            module,
            tuple(feed.values()) if positional else (),
            kwargs={} if positional else feed,
            dynamic_shapes=shapes,
            opset_version=nodes.OPSET,
            dynamo=True,
            verbose=False,
        )
    path = folder / f"{name}.onnx"
    ir.save(program.model, path)
    return path


def compare(name: str, seconds: float) -> dict[str, Any]:
    """What every tool made of one model."""
    torch.manual_seed(0)
    module = nodes.MODELS[name].build().eval()
    rows: dict[str, dict[str, Any]] = {}
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = exported(name, module, Path(folder))
        for tool, (package, run) in TOOLS.items():
            if importlib.util.find_spec(package) is None:
                rows[tool] = {"note": "not installed"}
                continue
            try:
                start = time.perf_counter()
                with contextlib.redirect_stdout(io.StringIO()):
                    made = run(path, name, module)
                took = time.perf_counter() - start
                rows[tool] = {"nodes": made.graph.num_nodes(), "fused": nodes.fused(made), "took": took}
                sessions[tool] = nodes.session(made)
                rows[tool]["error"] = _error(sessions[tool], name, module)
            except Exception as error:  # what a peer raises is a finding about it
                said = f"{type(error).__name__}: {' '.join(str(error).split())[:110]}"
                rows[tool] = {**rows.get(tool, {}), "note": said}
                sessions.pop(tool, None)
    for shape in SHAPES:
        for ratio in _ratios(sessions, name, module, shape, seconds):
            rows.setdefault(ratio.of, {})[f"{shape[0]}x{shape[1]}"] = (ratio.value, ratio.low, ratio.high)
    return {"name": name, "tools": rows}


def _error(session: onnxruntime.InferenceSession, name: str, module: nn.Module) -> float | None:
    feed = nodes.MODELS[name].feed(4, 128)
    with torch.no_grad():
        result = module(*feed.values()) if isinstance(module, nn.Sequential) else module(**feed)
    expected = [np.asarray(v) for v in flatten_outputs(result)[0].values()]
    outputs = session.run(None, nodes._named(session, feed))
    found = [relative_error(np.asarray(a), b) for a, b in zip(outputs, expected, strict=False)]
    known = [e for e in found if e is not None]
    return max(known) if len(known) == len(found) else None


def _ratios(
    sessions: dict[str, onnxruntime.InferenceSession],
    name: str,
    module: nn.Module,
    shape: tuple[int, int],
    seconds: float,
) -> tuple[Ratio, ...]:
    feed = nodes.MODELS[name].feed(*shape)
    runners: dict[str, Callable[[], None]] = {}
    for tool, session in sessions.items():
        with contextlib.suppress(Exception):  # a graph that does not take this size has no time at it
            runners[tool] = bound_runner(session, nodes._named(session, feed))

    def eager() -> None:
        with torch.inference_mode():
            module(*feed.values()) if isinstance(module, nn.Sequential) else module(**feed)

    runners["eager torch"] = eager
    if BASE not in runners:
        return ()
    return bench(runners, shapes={}, threads=1, seconds=seconds, clock=time.process_time, base=BASE).ratios


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a page."""
    lines = [
        "# deployml beside its peers",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[5:]),
        "",
        f"Width {nodes.WIDTH}, {nodes.LAYERS} layers, {nodes.HEADS} heads; float32, one thread; onnxruntime "
        f"{onnxruntime.__version__}, torch {torch.__version__}.",
        "",
        "| model | tool | sites | nodes | error | " + " | ".join(f"{b}x{s}" for b, s in SHAPES) + " | tool time |",
        "|---|---|---:|---:|---:|" + "---:|" * len(SHAPES) + "---:|",
    ]
    for row in rows:
        lines += [_line(row["name"], tool, said) for tool, said in row["tools"].items()]
    behind = [f"- {sentence}" for row in rows for sentence in _behind(row)]
    lines += [
        "",
        "## Where a peer is ahead",
        "",
        *(behind or ["Nowhere: ours is the best or within the interval of it."]),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, tool: str, said: dict[str, Any]) -> str:
    ratios = []
    for batch, length in SHAPES:
        found = said.get(f"{batch}x{length}")
        ratios.append(
            "1" if tool == BASE else "-" if found is None else f"{found[0]:.2f} ({found[1]:.2f}..{found[2]:.2f})"
        )
    error = "-" if said.get("error") is None else f"{said['error']:.0e}"
    took = f"{said['took']:.1f} s" if "took" in said else "-"
    cells = [name, tool, said.get("fused", "-"), said.get("nodes", "-"), error, *ratios, took]
    note = f" {said['note']}".replace("|", "\\|") if "note" in said else ""
    return "| " + " | ".join(map(str, cells)) + f"{note} |"


def _behind(row: dict[str, Any]) -> list[str]:
    """A sentence for each tool that fuses more sites, or whose whole interval is below 1 though it is as right."""
    ours = row["tools"].get(BASE, {})
    found = []
    for tool, said in row["tools"].items():
        if tool.startswith("deployml") or "nodes" not in said or "note" in said:
            continue
        if said["fused"] > ours.get("fused", 0):
            found.append(f"{row['name']}: {tool} fuses {said['fused']} sites, ours {ours.get('fused', 0)}")
        for batch, length in SHAPES:
            ratio = said.get(f"{batch}x{length}")
            if ratio is not None and ratio[2] < 1:
                wrong = said.get("error") is None or said["error"] > 1e-3
                remark = "; its results are wrong" if wrong else ""
                found.append(f"{row['name']} at {batch}x{length}: {tool} takes {ratio[0]:.2f} of our time{remark}")
    return found


def main() -> None:
    """Compare and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *nodes.MODELS], default=[])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each model and shape")
    parser.add_argument("--raw", type=Path, help="JSON file of the rows; those it holds are not measured again")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    kept = json.loads(given.raw.read_text()) if given.raw is not None and given.raw.exists() else []
    rows = {row["name"]: row for row in kept}
    for name in given.models or CHOSEN:
        if name not in rows:
            rows[name] = compare(name, given.seconds)
            print(json.dumps(rows[name]), file=sys.stderr, flush=True)
        if given.raw is not None:
            given.raw.write_text(json.dumps(list(rows.values())))
    page = table([rows[name] for name in given.models or CHOSEN])
    if not given.models:
        target = Path(__file__).parent / "results" / "peers.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(page)
    print(page)


if __name__ == "__main__":
    main()
