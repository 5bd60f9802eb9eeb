"""MixtureOfExperts on the CPU against onnxruntime's MoE and the plain graph of the same experts: paired, interleaved.

    python benchmarks/experts.py                        # all rows, prints the table
    python benchmarks/experts.py --only mixtral --quick
    python benchmarks/experts.py --cpu-time --write     # also writes benchmarks/results/experts.md
    python benchmarks/experts.py --dtype bfloat16

A ratio is the median over rounds of (rival's time / own time) with its 95 % interval, so 1.5 says that the own
operator is 1.5 times as fast. Contenders take turns within a round. Weights are initializers, which onnxruntime may
pack ahead; tokens and the router's choice are inputs. Before it is timed, a rival's output is compared with the own.

Rivals:

- com.microsoft::MoE, which takes the router's logits and chooses by itself. Its CPU kernel (onnxruntime 1.31) knows
  float32 and these activations: relu, gelu, silu, identity without a gate, and swiglu with gate and value interleaved,
  which is silu with alpha 1 and beta 0.
- the plain graph: ``grouped_mm_experts_forward`` of transformers, exported without fusion, a MatMul for each expert.
- two MatMuls: all rows through one expert, the operations without any routing. Their rate is what experts can reach
  where each has many rows.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

import deployml
from deployml.custom_ops import register
from deployml.custom_ops.mixture_of_experts import Signature, add_function, make_node
from deployml.runtime.latency import bench
from deployml.runtime.report import Ratio

RESULTS = Path(__file__).resolve().parent / "results" / "experts.md"
SIGNATURE = Signature(activation="silu", gated=True)
TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
TOKENS = (1, 8, 64, 512)
MOE, PLAIN, DENSE = "MoE", "plain graph", "two MatMuls"

#: Type to the rivals that onnxruntime's CPU provider has kernels for: MoE is float32, bfloat16 has no matrix product.
TAKES = {"float32": (MOE, PLAIN, DENSE), "float16": (PLAIN, DENSE), "bfloat16": ()}

Array = np.ndarray
Runner = Callable[[], list[Array]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a mixture."""

    name: str
    hidden: int
    inner: int
    count: int
    each: int


SHAPES = (
    Shape(name="mixtral", hidden=1024, inner=2048, count=8, each=2),
    Shape(name="qwen3-moe", hidden=1024, inner=512, count=32, each=4),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How to measure."""

    dtype: str
    threads: int
    clock: Callable[[], float]
    seconds: float


@dataclass(frozen=True, slots=True)
class Weights:
    """Gate, value and second product of every expert, float32."""

    gate: Array
    value: Array
    outer: Array

    @classmethod
    def of(cls, shape: Shape) -> Weights:
        """Random ones that keep the spread of the tokens."""
        rng = np.random.default_rng(0)
        e, h, i = shape.count, shape.hidden, shape.inner
        sizes = ((e, i, h), (e, i, h), (e, h, i))
        return cls(*(rng.standard_normal(size, dtype=np.float32) * size[-1] ** -0.5 for size in sizes))


def feeds(shape: Shape, tokens: int) -> dict[str, Array]:
    """Tokens, logits of a router, and what a softmax over the chosen makes of them."""
    rng = np.random.default_rng(tokens)
    logits = rng.standard_normal((tokens, shape.count), dtype=np.float32)
    experts = np.argsort(-logits, axis=1)[:, : shape.each].astype(np.int64)
    chosen = np.exp(np.take_along_axis(logits, experts, 1))
    x = rng.standard_normal((tokens, shape.hidden), dtype=np.float32)
    return {"x": x, "experts": experts, "weights": chosen / chosen.sum(1, keepdims=True), "logits": logits}


class Model:
    """A graph of a few nodes whose float inputs and output are float32, with casts where T is another type."""

    def __init__(self, dtype: str) -> None:
        self.type = TYPES[dtype]
        self.inputs: list[ir.Value] = []
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def input(self, name: str, width: int, *, index: bool = False) -> ir.Value:
        """An input of rows of this width, as T or as indices."""
        kind = ir.DataType.INT64 if index else ir.DataType.FLOAT
        value = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(["n", width]))
        self.inputs.append(value)
        return value if index or self.type == kind else self.op("Cast", value, to=int(self.type))

    def weight(self, name: str, array: Array) -> ir.Value:
        """An initializer of T."""
        tensor = ir.tensor(array.astype(self.type.numpy()), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(self.type), shape=ir.Shape(array.shape))
        self.initializers.append(value)
        return value

    def op(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """A node with one output."""
        return self.add(ir.node(op_type, inputs, attributes, domain=domain))

    def add(self, node: ir.Node) -> ir.Value:
        """A node with one output that was made elsewhere."""
        self.nodes.append(node)
        node.outputs[0].name = f"v{len(self.nodes)}"
        return node.outputs[0]

    def save(self, output: ir.Value, path: Path) -> Path:
        """Write the model, weights beside it."""
        if self.type != ir.DataType.FLOAT:
            output = self.op("Cast", output, to=int(ir.DataType.FLOAT))
        output.type = ir.TensorType(ir.DataType.FLOAT)
        imports = {"": 20, "com.microsoft": 1}
        graph = ir.Graph(
            self.inputs, [output], nodes=self.nodes, initializers=self.initializers, opset_imports=imports, name="g"
        )
        model = ir.Model(graph, ir_version=9)
        if any(node.domain == "deployml" for node in self.nodes):
            add_function(model, SIGNATURE)
        ir.save(model, path, external_data=f"{path.name}.data")
        return path


def own_model(shape: Shape, weights: Weights, dtype: str, path: Path) -> Path:
    """One node of the own operator."""
    model = Model(dtype)
    values = {
        "x": model.input("x", shape.hidden),
        "experts": model.input("experts", shape.each, index=True),
        "weights": model.input("weights", shape.each),
        "inner": model.weight("inner", np.concatenate([weights.gate, weights.value], axis=1)),
        "outer": model.weight("outer", weights.outer),
    }
    return model.save(model.add(make_node(SIGNATURE, values)), path)


def moe_model(shape: Shape, weights: Weights, dtype: str, path: Path) -> Path:
    """One node of com.microsoft::MoE."""
    model = Model(dtype)
    x, logits = model.input("x", shape.hidden), model.input("logits", shape.count)
    mixed = np.stack([weights.gate, weights.value], axis=2).reshape(shape.count, 2 * shape.inner, shape.hidden)
    first, second = model.weight("inner", mixed), model.weight("outer", weights.outer)
    output = model.op(
        "MoE",
        *(x, logits, first, None, second),
        domain="com.microsoft",
        k=shape.each,
        normalize_routing_weights=1,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
    )
    return model.save(output, path)


def dense_model(shape: Shape, weights: Weights, dtype: str, path: Path) -> Path:
    """All rows through the first expert, written as MatMuls."""
    model = Model(dtype)
    x = model.input("x", shape.hidden)
    first = np.ascontiguousarray(np.concatenate([weights.gate[0], weights.value[0]]).T)
    h = model.op("MatMul", x, model.weight("inner", first))
    halves = ir.node("Split", [h], {"axis": 1, "num_outputs": 2}, num_outputs=2)
    model.nodes.append(halves)
    gate, value = halves.outputs
    gate.name, value.name = "gate", "value"
    a = model.op("Mul", model.op("Mul", gate, model.op("Sigmoid", gate)), value)
    return model.save(model.op("MatMul", a, model.weight("outer", np.ascontiguousarray(weights.outer[0].T))), path)


def plain_model(shape: Shape, weights: Weights, dtype: str, path: Path) -> Path:
    """What an export of transformers' experts gives without fusion."""
    import torch
    from transformers.integrations.moe import _default_apply_gate, grouped_mm_experts_forward

    class Experts(torch.nn.Module):
        has_gate, has_bias, is_transposed, has_post_expert_norm, _is_expert_parallel = True, False, False, False, False
        _apply_gate = _default_apply_gate

        def __init__(self) -> None:
            super().__init__()
            kind = getattr(torch, dtype)
            self.num_experts = shape.count
            both = np.concatenate([weights.gate, weights.value], axis=1)
            self.gate_up_proj = torch.nn.Parameter(torch.from_numpy(both).to(kind))
            self.down_proj = torch.nn.Parameter(torch.from_numpy(weights.outer).to(kind))
            self.act_fn = torch.nn.SiLU()

        def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            kind = self.down_proj.dtype
            return grouped_mm_experts_forward(self, x.to(kind), experts, weights.to(kind)).float()

    given = {name: torch.from_numpy(array) for name, array in feeds(shape, 5).items() if name != "logits"}
    tokens = torch.export.Dim("n", min=1, max=8192)
    deployml.export(
        Experts().eval(),
        kwargs=given,
        dynamic_shapes={name: {0: tokens} for name in given},
        output=path,
        target="portable",
        fuse_attention=False,
        validate=False,
        html=False,
    )
    return path


def opened(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """A session that stops spinning between runs, so that contenders do not take each other's cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.force_spinning_stop", "1")
    register(options, only=[SIGNATURE.op_type])
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def runner(session: onnxruntime.InferenceSession, given: Mapping[str, Array]) -> Runner:
    """Runs a session on what it takes of these arrays."""
    fed = {value.name: np.ascontiguousarray(given[value.name]) for value in session.get_inputs()}
    return lambda: session.run(None, fed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A measured row."""

    shape: Shape
    tokens: int
    dtype: str
    milliseconds: float
    ratios: Mapping[str, Ratio]

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.tokens * self.shape.each * 6 * self.shape.hidden * self.shape.inner / (self.milliseconds * 1e-3)

    @property
    def read(self) -> float:
        """Bytes of chosen experts' weights a second."""
        chosen = len(np.unique(feeds(self.shape, self.tokens)["experts"]))
        size = 4 if self.dtype == "float32" else 2
        return chosen * 3 * self.shape.hidden * self.shape.inner * size / (self.milliseconds * 1e-3)


def run_shape(shape: Shape, setting: Setting, folder: Path) -> Iterator[Result]:
    """Measure a mixture at every number of tokens."""
    weights = Weights.of(shape)
    rivals = {MOE: moe_model, PLAIN: plain_model, DENSE: dense_model}
    makers = {"own": own_model, **{name: rivals[name] for name in TAKES[setting.dtype]}}
    sessions = {}
    for i, (name, make) in enumerate(makers.items()):
        sessions[name] = opened(make(shape, weights, setting.dtype, folder / f"{shape.name}-{i}.onnx"), setting.threads)
    del weights
    for tokens in TOKENS:
        given = feeds(shape, tokens)
        rows = {**given, "x": np.repeat(given["x"], shape.each, axis=0)}
        runners = {name: runner(s, rows if name == DENSE else given) for name, s in sessions.items()}
        if tokens * shape.each < 32 * shape.count:
            runners.pop(DENSE, None)  # experts with few rows are bound by reading their weights, which it does once
        compare(runners, setting.dtype)
        yield measure(shape, tokens, runners, setting)


def compare(runners: Mapping[str, Runner], dtype: str) -> None:
    """Make sure that all contenders compute the same."""
    own = runners["own"]()[0]
    granted = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 6e-2}[dtype] * float(np.abs(own).max())
    for name in set(runners) - {"own", DENSE}:
        error = float(np.abs(runners[name]()[0] - own).max())
        if not error <= granted:
            raise AssertionError(f"{name} differs by {error}, granted is {granted}")


def measure(shape: Shape, tokens: int, runners: Mapping[str, Runner], setting: Setting) -> Result:
    """One row of the table."""
    report = bench(
        runners, shapes={}, threads=setting.threads, seconds=setting.seconds, base="own", clock=setting.clock
    )
    own = next(c for c in report.contenders if c.name == "own")
    ratios = {ratio.of: ratio for ratio in report.ratios}
    return Result(shape=shape, tokens=tokens, dtype=setting.dtype, milliseconds=own.median_ms, ratios=ratios)


def table(results: Sequence[Result]) -> str:
    """The results as Markdown."""
    lines = [
        "| mixture | T | tokens | own, ms | GFLOP/s | GB/s of weights | over MoE (95 %) | over the plain graph (95 %) "
        "| rate, of two MatMuls' |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    def text(ratio: Ratio | None) -> str:
        return "" if ratio is None else f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"

    for r in results:
        dense = r.ratios.get(DENSE)
        numbers = (f"{r.milliseconds:.2f}", f"{r.rate / 1e9:.0f}", f"{r.read / 1e9:.1f}")
        rivals = (text(r.ratios.get(MOE)), text(r.ratios.get(PLAIN)), "" if dense is None else f"{dense.value:.0%}")
        lines.append("| " + " | ".join([r.shape.name, r.dtype, str(r.tokens), *numbers, *rivals]) + " |")
    return "\n".join(lines)


def own_isa() -> str:
    """Name of the instruction set the library chose."""
    import ctypes

    from deployml.custom_ops import library_path

    name = ctypes.CDLL(str(library_path())).deployml_cpu_isa
    name.restype = ctypes.c_char_p
    return name().decode()


def page(results: Sequence[Result], setting: Setting) -> str:
    """The result page: machine, versions, method, table."""
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    how = "wall time" if setting.clock is time.perf_counter else "processor time, because the machine was shared"
    threads = "one thread" if setting.threads == 1 else f"{setting.threads} threads"
    sizes = "; ".join(f"{s.name}: H {s.hidden}, I {s.inner}, {s.count} experts, {s.each} a token" for s in SHAPES)
    return "\n".join(
        [
            "# MixtureOfExperts on the CPU",
            "",
            f"{processor}, {own_isa()}; onnxruntime {onnxruntime.__version__}, "
            f"transformers {transformers.__version__}, torch {torch.__version__}, "
            f"Python {platform.python_version()}. {threads}, {how}. {sizes}; silu with a gate.",
            "",
            "Ratios are medians over interleaved rounds: 1.5 says that the own operator is 1.5 times as fast. `MoE` is "
            "com.microsoft::MoE (swiglu, interleaved; its CPU kernel has float32 alone, and it does the router's "
            "softmax and choice too), `the plain graph` the export of transformers' grouped experts without fusion, "
            "`two MatMuls` all rows through one expert without routing. Where a field is empty, onnxruntime's CPU "
            "provider has no kernel for the type, or experts have too few rows for a comparison with a product "
            "without routing. GB/s counts each chosen expert's weights once.",
            "",
            table(results),
            "",
            "Not run here: NVIDIA and AMD GPUs; processors without AVX-512.",
            "",
            "Made by `benchmarks/experts.py --write`.",
            "",
        ]
    )


def main() -> None:
    """Measure, print, and on request write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mixtures whose name contains this")
    parser.add_argument("--dtype", action="append", choices=TYPES, help="type T, float32 by default; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=12.0, help="a row")
    parser.add_argument("--quick", action="store_true", help="four seconds a row")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, processor time")
    parser.add_argument("--write", action="store_true", help="write the result page")
    arguments = parser.parse_args()
    results: list[Result] = []
    for dtype in arguments.dtype or ["float32"]:
        setting = Setting(
            dtype=dtype,
            threads=1 if arguments.cpu_time else arguments.threads,
            clock=time.process_time if arguments.cpu_time else time.perf_counter,
            seconds=4.0 if arguments.quick else arguments.seconds,
        )
        for shape in SHAPES:
            if arguments.only not in shape.name:
                continue
            with tempfile.TemporaryDirectory() as folder:
                for result in run_shape(shape, setting, Path(folder)):
                    results.append(result)
                    print(table([result]).splitlines()[-1], flush=True)
    if arguments.write:
        RESULTS.write_text(page(results, setting))


if __name__ == "__main__":
    main()
