"""How the passes scale with depth: ``python benchmarks/scaling.py`` writes benchmarks/results/scaling.md.

A Llama-7B-shaped graph (width 4096, 32 heads, feed-forward 11008) as torch.export translates it, of 8 to 64
layers, goes through the whole pipeline. Its weights are lazy: 26 GB are named, none are made unless a pass asks
for them. Each depth runs in a process of its own, so that its peak of resident memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from deployml.custom_ops import register
from deployml.passes import canonical, pipeline
from deployml.passes.graph import Builder
from deployml.runtime.target import Target

WIDTH, HEADS, SIZE, INNER, VOCABULARY = 4096, 32, 128, 11008, 32000
DEPTHS = (8, 16, 32, 64)
F32, I64 = ir.DataType.FLOAT, ir.DataType.INT64


class _Graph:
    """A graph under construction."""

    def __init__(self) -> None:
        batch, length = "batch", "sequence"
        self.inputs = [
            ir.Value(name=name, type=ir.TensorType(I64), shape=ir.Shape([batch, length]))
            for name in ("input_ids", "attention_mask")
        ]
        self.graph = ir.Graph(self.inputs, [], nodes=[], opset_imports={"": 20, canonical.DOMAIN: 1}, name="llama")
        self.g = Builder(self.graph, prefix="n")
        self.seen: set[str] = set()

    def op(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        return self.g.op(name, *inputs, **attributes)

    def ints(self, *numbers: int) -> ir.Value:
        return self.g.const(np.array(numbers, np.int64))

    def weight(self, name: str, *shape: int) -> ir.Value:
        """A float32 initializer that is made when, and only when, someone reads it."""

        def make() -> ir.TensorProtocol:
            block = np.random.default_rng(len(name)).standard_normal(65_537).astype(np.float32) * 0.02
            return ir.tensor(np.resize(block, shape), name=name)

        tensor = ir.LazyTensor(make, dtype=F32, shape=ir.Shape(shape), name=name, cache=False)
        value = ir.Value(name=name, type=ir.TensorType(F32), shape=ir.Shape(shape), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def linear(self, x: ir.Value, name: str, inner: int, outer: int) -> ir.Value:
        """x @ W^T, as torch stores W: the passes fold the transpose into the weight."""
        turned = self.op("Transpose", self.weight(name, outer, inner), perm=[1, 0])
        return self.op("MatMul", x, turned)

    def norm(self, x: ir.Value, name: str) -> ir.Value:
        square = self.op("Pow", x, self.g.const(np.array(2.0, np.float32)))
        mean = self.op("ReduceMean", square, self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.g.const(np.array(1e-6, np.float32))))
        unit = self.op("Mul", x, self.op("Reciprocal", root))
        return self.op("Mul", self.weight(name, WIDTH), unit)

    def tables(self) -> tuple[ir.Value, ir.Value]:
        """cos and sin of the positions, (1, 1, S, H)."""
        length = self.op("Squeeze", self.op("Shape", self.inputs[0], start=1, end=2))
        zero, one = (self.g.const(np.array(n, np.int64)) for n in (0, 1))
        position = self.op("Cast", self.op("Range", zero, length, one), to=int(F32))
        inverse = self.g.const((10_000.0 ** -(np.arange(0, SIZE, 2) / SIZE)).astype(np.float32))
        angle = self.op("Mul", self.op("Unsqueeze", position, self.ints(1)), inverse)
        both = self.op("Unsqueeze", self.op("Concat", angle, angle, axis=-1), self.ints(0, 1))
        return self.op("Cos", both), self.op("Sin", both)

    def mask(self) -> ir.Value:
        """Causal and padding, (B, 1, S, S)."""
        length = self.op("Squeeze", self.op("Shape", self.inputs[0], start=1, end=2))
        zero, one = (self.g.const(np.array(n, np.int64)) for n in (0, 1))
        position = self.op("Range", zero, length, one)
        rows, columns = (self.op("Unsqueeze", position, self.ints(axis)) for axis in (1, 0))
        causal = self.op("LessOrEqual", columns, rows)
        kept = self.op("Unsqueeze", self.op("Cast", self.inputs[1], to=9), self.ints(1, 2))
        return self.op("And", causal, kept)

    def rotated(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        far, half = self.ints(2**63 - 1), SIZE // 2
        one = self.op("Slice", x, self.ints(0), self.ints(half), self.ints(3), self.ints(1))
        two = self.op("Slice", x, self.ints(half), far, self.ints(3), self.ints(1))
        turned = self.op("Concat", self.op("Neg", two), one, axis=-1)
        return self.op("Add", self.op("Mul", x, cos), self.op("Mul", turned, sin))

    def heads(self, x: ir.Value) -> ir.Value:
        split = self.op("Reshape", x, self.ints(0, 0, HEADS, SIZE), shape=["batch", "sequence", HEADS, SIZE])
        return self.op("Transpose", split, perm=[0, 2, 1, 3], shape=["batch", HEADS, "sequence", SIZE])

    def layer(self, x: ir.Value, number: int, cos: ir.Value, sin: ir.Value, mask: ir.Value) -> ir.Value:
        at = f"layers.{number}"
        inner = self.norm(x, f"{at}.input_norm")
        q, k, v = (self.heads(self.linear(inner, f"{at}.{n}_proj", WIDTH, WIDTH)) for n in "qkv")
        q, k = self.rotated(q, cos, sin), self.rotated(k, cos, sin)
        y = self.op(
            f"{canonical.DOMAIN}::{canonical.NAME}",
            q,
            k,
            v,
            mask,
            scale=SIZE**-0.5,
            causal="none",
            empty_rows="zero",
            dtype=F32,
            shape=["batch", HEADS, "sequence", SIZE],
        )
        y = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), self.ints(0, 0, WIDTH))
        x = self.op("Add", x, self.linear(y, f"{at}.o_proj", WIDTH, WIDTH))
        inner = self.norm(x, f"{at}.post_norm")
        gate = self.linear(inner, f"{at}.gate", WIDTH, INNER)
        gate = self.op("Mul", gate, self.op("Sigmoid", gate))
        wide = self.op("Mul", gate, self.linear(inner, f"{at}.up", WIDTH, INNER))
        return self.op("Add", x, self.linear(wide, f"{at}.down", INNER, WIDTH))


def llama(depth: int) -> ir.Model:
    """The graph: (B, S) ids and mask to (B, S, 4096)."""
    made = _Graph()
    cos, sin = made.tables()
    mask = made.mask()
    x = made.op("Gather", made.weight("embedding", VOCABULARY, WIDTH), made.inputs[0], dtype=F32)
    for number in range(depth):
        x = made.layer(x, number, cos, sin, mask)
    x = made.norm(x, "norm")
    x.name, x.type, x.shape = "hidden", ir.TensorType(F32), ir.Shape(["batch", "sequence", WIDTH])
    made.graph.extend(made.g.nodes)
    for value in made.g.initializers:
        made.graph.register_initializer(value)
    made.graph.outputs.append(x)
    return ir.Model(made.graph, ir_version=10)


def measure(depth: int) -> dict[str, Any]:
    """Run the pipeline over one depth in this process."""
    model = llama(depth)
    nodes = model.graph.num_nodes()
    before = _peak()
    start = time.perf_counter()
    outcome = pipeline.run(
        model,
        Target(name="cpu", onnxruntime=(1, 31, 1), opset=20),
        configure=register,
    )
    seconds = time.perf_counter() - start
    journal = outcome.journal
    passes: dict[str, float] = {}
    for record in journal.passes:
        passes[record.name] = passes.get(record.name, 0.0) + record.seconds
    return {
        "depth": depth,
        "nodes": nodes,
        "left": outcome.model.graph.num_nodes(),
        "fused": sum(s.status == "fused" for s in journal.sites),
        "seconds": seconds,
        "cpu_seconds": time.process_time(),
        "peak_mib": _peak() >> 10,
        "before_mib": before >> 10,
        "executed": sum(r.proof == "executed" for r in journal.rewrites),
        "cached": sum(r.proof == "cached" for r in journal.rewrites),
        "passes": {k: round(v, 2) for k, v in passes.items()},
        "notes": {r.name: r.note for r in journal.passes if r.note},
    }


def _peak() -> int:
    """Peak resident memory of this process, KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a page."""
    lines = [
        "# Passes over a Llama-7B-shaped graph",
        "",
        "Width 4096, 32 heads, feed-forward 11008; weights are lazy (0.8 GB a layer are named, none are read).",
        "Made by `python benchmarks/scaling.py`; each depth in a process of its own.",
        "",
        "| layers | nodes before | nodes after | attention fused | proofs run | proofs reused | seconds | CPU seconds "
        "| seconds a layer | peak RSS, MiB |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        lines.append(
            f"| {r['depth']} | {r['nodes']} | {r['left']} | {r['fused']} | {r['executed']} | {r['cached']} "
            f"| {r['seconds']:.1f} | {r['cpu_seconds']:.1f} | {r['seconds'] / r['depth']:.2f} | {r['peak_mib']} |"
        )
    names = sorted({n for r in rows for n in r["passes"]}, key=lambda n: -rows[-1]["passes"].get(n, 0.0))
    lines += ["", "Seconds by pass:", "", "| pass | " + " | ".join(str(r["depth"]) for r in rows) + " |"]
    lines.append("|---|" + "---:|" * len(rows))
    lines += [f"| {n} | " + " | ".join(f"{r['passes'].get(n, 0.0):.2f}" for r in rows) + " |" for n in names]
    notes = sorted({f"{name}: {note}" for r in rows for name, note in r["notes"].items()})
    if notes:
        lines += ["", "Notes of the passes:", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every depth and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=None, help="measure one depth and print it as JSON")
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    given = parser.parse_args()
    if given.depth is not None:
        print(json.dumps(measure(given.depth)))
        return
    rows = []
    for depth in given.depths:
        command = [sys.executable, __file__, "--depth", str(depth)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"{depth} layers: {rows[-1]['seconds']:.1f} s, {rows[-1]['peak_mib']} MiB", file=sys.stderr)
    page = Path(__file__).parent / "results" / "scaling.md"
    page.parent.mkdir(exist_ok=True)
    page.write_text(table(rows))
    print(page.read_text())


if __name__ == "__main__":
    main()
