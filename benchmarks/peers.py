"""deployml beside the tools that do part of its job, each on the very same ONNX export.

    python benchmarks/peers.py                  # all models, writes docs/peers.md
    python benchmarks/peers.py bert llama       # some of them, printed only
    python benchmarks/peers.py --with optimum=/env/bin/python --with onnxslim=/other/bin/python

torch.onnx.export writes one file for each model (opset 20, dynamic batch and length); every tool starts from that file,
save "deployml export", which starts from the module. Peers run in processes of their own, in the environment that
--with names; all graphs, eager torch and torch.compile are timed in turn in one process. Sites are attentions of one
node. The error is against eager float32 at 4x128 with padding, relative to the largest output. A ratio is the median
over interleaved rounds of (the tool's time / deployml optimize's time) with its 95 % interval, in processor time of one
thread: above 1 the tool's graph is the slower one. Tool time is that of the tool alone, imports aside, and of the first
run for torch.compile. Memory is the growth of a fresh process that loads the result and runs it twice at 4x128;
compiling counts. A tool that is not installed or fails says so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nodes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import torch
import transformers as tf
from peer_memory import torch_memory
from peer_tools import TOOLS
from torch import nn
from torch._inductor.utils import fresh_inductor_cache

from deployml.custom_ops import library_for, register
from deployml.exporter.capture.outputs import flatten_outputs
from deployml.exporter.foreign_origins import adopt_origins
from deployml.exporter.fusing import libraries_of
from deployml.passes import pipeline
from deployml.runtime.compare import relative_error
from deployml.runtime.footprint import footprint, in_a_process
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

#: Makes a graph of the file at a path (or of the module), and says how many seconds that took.
Tool = Callable[[Path, str, nn.Module], tuple[ir.Model, float]]


def _unfused(path: Path, name: str, module: nn.Module) -> ir.Model:
    return ir.load(path)


def _deployml(path: Path, name: str, module: nn.Module) -> ir.Model:
    model = ir.load(path)
    adopt_origins(model)
    target = Target(name="cpu", onnxruntime=(1, 31, 1), opset=nodes.OPSET)
    return pipeline.run(model, target, configure=register).model


def _deployml_export(path: Path, name: str, module: nn.Module) -> ir.Model:
    return nodes.ours(module, nodes.MODELS[name])[0]


def _elsewhere(tool: str, python: str) -> Tool:
    """A peer in its own process and environment."""

    def run(path: Path, name: str, module: nn.Module) -> tuple[ir.Model, float]:
        target, folder = path.with_name(f"{name}.{tool}.onnx"), None
        if isinstance(getattr(module, "config", None), tf.PretrainedConfig):
            folder = str(path.parent)
            module.config.save_pretrained(folder)
        facts = {
            "heads": nodes.HEADS,
            "width": nodes.WIDTH,
            "kind": KINDS.get(name, "bert"),
            "config": folder,
        }
        command = [python, str(Path(__file__).with_name("peer_tools.py")), tool, str(path), str(target)]
        # The environment of the tool decides what it imports, not ours.
        alone = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [*command, json.dumps(facts)], capture_output=True, text=True, check=False, env=alone, timeout=600
        )
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise RuntimeError(last)
        return ir.load(target), json.loads(done.stdout.strip().splitlines()[-1])["took"]

    return run


def _timed(tool: Callable[[Path, str, nn.Module], ir.Model]) -> Tool:
    def run(path: Path, name: str, module: nn.Module) -> tuple[ir.Model, float]:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            made = tool(path, name, module)
        return made, time.perf_counter() - start

    return run


def tools(environments: dict[str, str]) -> dict[str, Tool]:
    """Name -> what makes a graph and says how long it took."""
    ours = {"unfused": _unfused, "deployml optimize": _deployml, "deployml export": _deployml_export}
    peers = {tool: _elsewhere(tool, environments.get(tool, sys.executable)) for tool in TOOLS}
    return {name: _timed(tool) for name, tool in ours.items()} | peers


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


def compare(name: str, seconds: float, environments: dict[str, str]) -> dict[str, Any]:
    """What every tool made of one model."""
    torch.manual_seed(0)
    module = nodes.MODELS[name].build().eval()
    rows: dict[str, dict[str, Any]] = {}
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = exported(name, module, Path(folder))
        for tool, run in tools(environments).items():
            try:
                made, took = run(path, name, module)
                rows[tool] = {"nodes": made.graph.num_nodes(), "fused": nodes.fused(made), "took": took}
                sessions[tool] = nodes.session(made)
                rows[tool]["error"] = _error(sessions[tool], name, module)
                rows[tool]["memory"] = _memory(made, sessions[tool], name, Path(folder))
            except Exception as error:  # what a peer raises is a finding about it
                said = " ".join(str(error).split())[:110]
                rows[tool] = {**rows.get(tool, {}), "note": said}
                sessions.pop(tool, None)
    called, rows["torch.compile"] = _compiled(name, module)
    rows["eager torch"] = {"memory": in_a_process(torch_memory, name, *SHAPES[-1], False)}
    for shape in SHAPES:
        for ratio in _ratios(sessions, name, module, called, shape, seconds):
            rows.setdefault(ratio.of, {})[f"{shape[0]}x{shape[1]}"] = (ratio.value, ratio.low, ratio.high)
    return {"name": name, "tools": rows}


def _compiled(name: str, module: nn.Module) -> tuple[nn.Module | None, dict[str, Any]]:
    """The module under torch.compile after its first run, and what that took."""
    called, feed = torch.compile(module), nodes.MODELS[name].feed(*SHAPES[0])
    try:
        with fresh_inductor_cache():  # what an earlier run compiled would be found again
            start = time.perf_counter()
            _call(called, module, feed)
            took = time.perf_counter() - start
        memory = in_a_process(torch_memory, name, *SHAPES[-1], True)
    except Exception as error:  # no compiler, or code that it does not take
        return None, {"note": " ".join(str(error).split())[:110]}
    return called, {"took": took, "memory": memory}


def _call(called: Callable[..., Any], module: nn.Module, feed: dict[str, torch.Tensor]) -> Any:
    with torch.inference_mode():
        return called(*feed.values()) if isinstance(module, nn.Sequential) else called(**feed)


def _memory(made: ir.Model, session: onnxruntime.InferenceSession, name: str, folder: Path) -> int | None:
    path = folder / "measured.onnx"
    ir.save(made, path)
    feeds = nodes._named(session, nodes.MODELS[name].feed(*SHAPES[-1]))
    return footprint(path, "cpu", libraries_of(made, "cpu"), feeds, threads=1)


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
    compiled: nn.Module | None,
    shape: tuple[int, int],
    seconds: float,
) -> tuple[Ratio, ...]:
    feed = nodes.MODELS[name].feed(*shape)
    runners: dict[str, Callable[[], None]] = {}
    for tool, session in sessions.items():
        with contextlib.suppress(Exception):  # a graph that does not take this size has no time at it
            runners[tool] = bound_runner(session, nodes._named(session, feed))

    runners["eager torch"] = lambda: _call(module, module, feed)
    if compiled is not None:
        runners["torch.compile"] = lambda: _call(compiled, module, feed)
    if BASE not in runners:
        return ()
    return bench(runners, shapes={}, threads=1, seconds=seconds, clock=time.process_time, base=BASE).ratios


def library_memory() -> int | None:
    """Bytes by which a process grows for our operator library, whatever the model."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }'
    )
    path = library_for("cpu")
    if path is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "relu.onnx"
        onnx.save(model, file)
        feeds = {"x": np.ones(4, np.float32)}
        alone, loaded = (footprint(file, "cpu", libraries, feeds, threads=1) for libraries in ((), (str(path),)))
    return None if alone is None or loaded is None else loaded - alone


def table(rows: list[dict[str, Any]], library: int | None) -> str:
    """The rows as a page; ``library`` is what :func:`library_memory` says."""
    lines = [
        "# deployml beside its peers",
        "",
        *(line.strip() for line in (__doc__ or "").strip().splitlines()[6:]),
        "",
        f"Width {nodes.WIDTH}, {nodes.LAYERS} layers, {nodes.HEADS} heads; float32, one thread; onnxruntime "
        f"{onnxruntime.__version__}, torch {torch.__version__}.",
        "",
        "| model | tool | sites | nodes | error | "
        + " | ".join(f"{b}x{s}" for b, s in SHAPES)
        + " | tool time | memory |",
        "|---|---|---:|---:|---:|" + "---:|" * len(SHAPES) + "---:|---:|",
    ]
    for row in rows:
        lines += [_line(row["name"], tool, said) for tool, said in row["tools"].items()]
    behind = [f"- {sentence}" for row in rows for sentence in _behind(row)]
    lighter = [f"- {sentence}" for row in rows for sentence in _lighter(row, library)]
    once = (
        "" if library is None else f", of ours {library / (1 << 20):.0f} MiB for the operator library, once a process"
    )
    lines += [
        "",
        "## Where a peer is ahead",
        "",
        "Sites and time of a run:",
        "",
        *(behind or ["- nowhere: ours is the best or within the interval of it"]),
        "",
        f"Memory, where a peer whose results are right takes a tenth less{once}:",
        "",
        *(lighter or ["- nowhere"]),
        "",
        _ABOUT_MEMORY,
        "",
        "Tool time, in every row: ours runs each rewrite before and after on inputs of many sizes and masks and keeps "
        "it only where the numbers agree; the others rewrite by pattern and prove nothing.",
    ]
    return "\n".join(lines) + "\n"


#: Measured by hand on nn.TransformerEncoder, with the arena and with prepacking switched off in turn.
_ABOUT_MEMORY = (
    "Sessions here register every operator of the library; deployml.session registers those that a model calls, which "
    "takes 0.4 MiB of these 17. Where eager torch is below ours even so: onnxruntime's arena grows in large steps (8 "
    "of the 27 MiB that two runs of nn.TransformerEncoder take), and loading holds the file beside the weights made of "
    "it."
)


def _line(name: str, tool: str, said: dict[str, Any]) -> str:
    ratios = []
    for batch, length in SHAPES:
        found = said.get(f"{batch}x{length}")
        ratios.append(
            "1" if tool == BASE else "-" if found is None else f"{found[0]:.2f} ({found[1]:.2f}..{found[2]:.2f})"
        )
    error = "-" if said.get("error") is None else f"{said['error']:.0e}"
    took = f"{said['took']:.1f} s" if "took" in said else "-"
    memory = f"{said['memory'] / (1 << 20):.0f} MiB" if said.get("memory") else "-"
    cells = [name, tool, said.get("fused", "-"), said.get("nodes", "-"), error, *ratios, took, memory]
    note = f" {said['note']}".replace("|", "\\|") if "note" in said else ""
    return "| " + " | ".join(map(str, cells)) + f"{note} |"


def _behind(row: dict[str, Any]) -> list[str]:
    """A sentence for each tool that fuses more sites, or whose whole interval is below 1 though it is as right."""
    ours = row["tools"].get(BASE, {})
    found = []
    for tool, said in row["tools"].items():
        if tool.startswith("deployml") or "note" in said:
            continue
        if said.get("fused", 0) > ours.get("fused", 0):
            found.append(f"{row['name']}: {tool} fuses {said['fused']} sites, ours {ours.get('fused', 0)}")
        for batch, length in SHAPES:
            ratio = said.get(f"{batch}x{length}")
            if ratio is not None and ratio[2] < 1:
                wrong = "nodes" in said and (said.get("error") is None or said["error"] > 1e-3)
                remark = "; its results are wrong" if wrong else ""
                found.append(f"{row['name']} at {batch}x{length}: {tool} takes {ratio[0]:.2f} of our time{remark}")
    return found


def _lighter(row: dict[str, Any], library: int | None) -> list[str]:
    """A sentence for each tool that takes clearly less memory, with the part of ours that no model can help."""
    ours = row["tools"].get(BASE, {}).get("memory")
    found = []
    for tool, said in row["tools"].items():
        held = said.get("memory")
        if tool.startswith("deployml") or "note" in said or not ours or not held or held > 0.9 * ours:
            continue
        why = ""
        if library is not None:
            left = ours - library
            why = f"; {left / (1 << 20):.0f} without the library" + (", which is less" if left < held else "")
        found.append(f"{row['name']}: {tool} takes {held / (1 << 20):.0f} MiB, ours {ours / (1 << 20):.0f}{why}")
    return found


def main() -> None:
    """Compare and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *nodes.MODELS], default=[])
    parser.add_argument("--seconds", type=float, default=6.0, help="for each model and shape")
    parser.add_argument("--raw", type=Path, help="JSON file of the rows; those it holds are not measured again")
    parser.add_argument("--with", action="append", default=[], dest="environments", metavar="TOOL=PYTHON")
    given = parser.parse_args()
    environments = dict(one.split("=", 1) for one in given.environments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    kept = json.loads(given.raw.read_text()) if given.raw is not None and given.raw.exists() else []
    rows = {row["name"]: row for row in kept}
    for name in given.models or CHOSEN:
        if name not in rows:
            rows[name] = compare(name, given.seconds, environments)
            print(json.dumps(rows[name]), file=sys.stderr, flush=True)
        if given.raw is not None:
            given.raw.write_text(json.dumps(list(rows.values())))
    page = table([rows[name] for name in given.models or CHOSEN], library_memory())
    if not given.models:
        (Path(__file__).parents[1] / "docs" / "peers.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
