"""FlashAttention on the CPU against what onnxruntime runs for the same call: paired, interleaved, float32.

    python benchmarks/attention.py                       # all rows, prints the table
    python benchmarks/attention.py --only causal --quick
    python benchmarks/attention.py --write               # also writes benchmarks/results/attention-*.{md,svg}
    python benchmarks/older_processor.py avx2 benchmarks/attention.py --write

A ratio is the median over rounds of (rival's time / own time) with its 95 % interval, so 1.5 says that the own
operator is 1.5 times as fast. Contenders take turns within a round and the order alternates. Masks and biases are
inputs of the run, not constants. Rivals that onnxruntime refuses for a row are left out of it.

On a machine that others use, wall time says little: ``--cpu-time`` runs everything on one thread and counts the
processor time of the process.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from deployml.custom_ops import register
from deployml.custom_ops.flash_attention import Attributes, Signature
from deployml.custom_ops.flash_attention.check import one_node_model
from deployml.runtime.latency import bench
from deployml.runtime.report import LatencyReport, Ratio

HEADS, HEAD = 12, 64
WIDTH = HEADS * HEAD
LOWEST = float(np.finfo(np.float32).min)
RESULTS = Path(__file__).resolve().parent / "results"

Array = np.ndarray
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How to measure: threads, clock, seconds a row."""

    threads: int
    clock: Clock
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """One onnxruntime operator that computes the same: node and inputs beyond query, key and value."""

    name: str
    domain: str
    op_type: str
    attributes: Mapping[str, object]
    slots: Sequence[str]  # input names by position, "" for an absent one
    extra: Mapping[str, Array] = field(default_factory=dict)
    outputs: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: the call, its rivals, the target ratio and the work that cannot be avoided."""

    name: str
    signature: Signature
    attributes: Attributes
    inputs: Mapping[str, Array]
    rivals: Sequence[Rival]
    target: float
    flops: int
    byte_count: int


def multihead(**extra: object) -> Rival:
    """com.microsoft MultiHeadAttention; ``mask`` (key padding) or ``bias`` may be given."""
    arrays = {k: v for k, v in extra.items() if isinstance(v, np.ndarray)}
    attributes = {k: v for k, v in extra.items() if k not in arrays}
    slots = ["query", "key", "value", "", "mask" if "mask" in arrays else "", "bias" if "bias" in arrays else ""]
    name = "MultiHeadAttention" + "".join(f" +{k}" for k in arrays)
    settings = {"num_heads": HEADS, "scale": HEAD**-0.5, "mask_filter_value": LOWEST, **attributes}
    return Rival(
        name=name,
        domain="com.microsoft",
        op_type="MultiHeadAttention",
        attributes=settings,
        slots=slots,
        extra=arrays,
    )


def grouped(length: int, batch: int = 1, **extra: object) -> Rival:
    """com.microsoft GroupQueryAttention over new keys only, with the present outputs that make it flash."""
    arrays = {k: v for k, v in extra.items() if isinstance(v, np.ndarray)}
    attributes = {k: v for k, v in extra.items() if k not in arrays}
    slots = ["query", "key", "value", "", "", "lengths", "total", "", "", ""]
    slots += ["bias" if "bias" in arrays else "", "sink" if "sink" in arrays else ""]
    counts = {"lengths": np.full(batch, length - 1, np.int32), "total": np.array([length], np.int32)}
    settings = {"num_heads": HEADS, "kv_num_heads": HEADS, "scale": HEAD**-0.5, **attributes}
    return Rival(
        name="GroupQueryAttention" + "".join(f" +{k}" for k in arrays),
        domain="com.microsoft",
        op_type="GroupQueryAttention",
        attributes=settings,
        slots=slots,
        extra={**counts, **arrays},
        outputs=3,
    )


def standard(**extra: object) -> Rival:
    """ai.onnx Attention of opset 23."""
    arrays = {k: v for k, v in extra.items() if isinstance(v, np.ndarray)}
    attributes = {k: v for k, v in extra.items() if k not in arrays}
    return Rival(
        name="ai.onnx Attention" + "".join(f" +{k}" for k in arrays),
        domain="",
        op_type="Attention",
        attributes={"q_num_heads": HEADS, "kv_num_heads": HEADS, "scale": HEAD**-0.5, **attributes},
        slots=["query", "key", "value", *arrays],
        extra=arrays,
    )


def rival_model(rival: Rival, inputs: Mapping[str, Array]) -> bytes:
    """A model of one node."""
    values = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape([f"{name}_{i}" for i in range(array.ndim)]),
        )
        for name, array in inputs.items()
    }
    slots = list(rival.slots)
    while slots and not slots[-1]:
        slots.pop()
    node = ir.node(
        rival.op_type,
        [values[slot] if slot else None for slot in slots],
        dict(rival.attributes),
        domain=rival.domain,
        num_outputs=rival.outputs,
    )
    for i, value in enumerate(node.outputs):
        value.name, value.type = f"output_{i}", ir.TensorType(ir.DataType.FLOAT)
    imports = {"": 23, "com.microsoft": 1}
    graph = ir.Graph(list(values.values()), list(node.outputs), nodes=[node], opset_imports=imports, name="rival")
    return ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()


def open_model(model: bytes) -> onnxruntime.InferenceSession:
    """A session on the threads of the process, which contenders share: threads of their own would take each other's
    cores while they spin, and would have to be woken for each run if they did not."""
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    options.log_severity_level = 4
    register(options)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def runner(session: onnxruntime.InferenceSession, inputs: Mapping[str, Array]) -> Callable[[], None]:
    """Runs a session on inputs that onnxruntime reads where they lie; outputs are allocated at each run.

    (With bound outputs ai.onnx Attention of onnxruntime 1.31 refuses its second run.)
    """
    feeds = {name: aligned(array) for name, array in inputs.items()}
    return lambda: session.run(None, feeds)


def aligned(array: Array) -> Array:
    """A copy that starts where onnxruntime lets tensors between nodes start: at a multiple of 64 bytes."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def rows() -> list[Row]:
    """Every row of the table."""
    rng = np.random.default_rng(0)
    found = []

    def add(
        name: str,
        length: int,
        rivals: Sequence[Rival],
        target: float,
        *,
        batch: int = 1,
        pairs: float | None = None,
        given: Mapping[str, Array] | None = None,
        **options: object,
    ) -> None:
        normal = [rng.standard_normal((batch, length, WIDTH)).astype(np.float32) for _ in range(3)]
        inputs = dict(zip(("query", "key", "value"), normal, strict=True)) | dict(given or {})
        parts = ("mask", "bias", "slopes", "table", "sink")
        signature = Signature(lengths="key_lengths" in inputs, **{part: part in inputs for part in parts})
        attributes = Attributes(num_heads=HEADS, kv_heads=HEADS, scale=HEAD**-0.5, **options)  # type: ignore[arg-type]
        met = pairs if pairs is not None else batch * length * length
        found.append(
            Row(
                name=name,
                signature=signature,
                attributes=attributes,
                inputs=inputs,
                rivals=rivals,
                target=target,
                flops=int(4 * met * WIDTH),
                byte_count=sum(array.nbytes for array in inputs.values()) + inputs["query"].nbytes,
            )
        )

    for n in (16, 32, 64, 128, 256, 512):
        add(f"plain {n}", n, [multihead(), standard()], 0.95)
        add(f"causal {n}", n, [grouped(n), standard(is_causal=1)], 0.95, causal=1, pairs=n * (n + 1) / 2)
    n = 2048
    half = n * (n + 1) / 2
    add(f"plain {n}", n, [multihead(), standard()], 1.0)
    add(f"causal {n}", n, [grouped(n), standard(is_causal=1)], 1.3, causal=1, pairs=half)
    kept = int(0.9 * n)
    add(
        f"padding mask {n}",
        n,
        [multihead(mask=(np.arange(n) < kept).astype(np.int32)[None])],
        1.3,
        given={"bias": np.where(np.arange(n) < kept, 0, LOWEST).astype(np.float32)[None, None, None]},
        pairs=n * kept,
    )
    bias = rng.standard_normal((1, HEADS, n, n)).astype(np.float32)
    add(f"bias {n}", n, [multihead(bias=bias), standard(bias=bias)], 1.3, given={"bias": bias})
    shared = bias[:, :1].copy()
    add(f"bias of one head {n}", n, [multihead(bias=shared), standard(bias=shared)], 1.3, given={"bias": shared})
    window = sum(min(i + 1, 128) for i in range(n))
    add(f"window 128 {n}", n, [grouped(n, local_window_size=128)], 8.0, causal=1, window_left=127, pairs=window)

    lengths = np.array([512, 64, 150, 200, 100, 300, 180, 132], np.int32)  # mean 205, 40 %
    valid = np.arange(512) < lengths[:, None]
    batch_pairs = float(512 * lengths.sum())
    padded = [multihead(mask=valid.astype(np.int32))]
    additive = np.where(valid, 0, LOWEST).astype(np.float32)[:, None, None]
    for name, given in (("additive mask", {"bias": additive}), ("lengths", {"key_lengths": lengths})):
        add(f"8x512 40%, {name}", 512, padded, 2.0, batch=8, given=given, pairs=batch_pairs)

    n = 1024
    half = n * (n + 1) / 2
    slopes = (2.0 ** (-8.0 * np.arange(1, HEADS + 1) / HEADS)).astype(np.float32)
    distance = -np.abs(np.arange(n)[:, None] - np.arange(n)).astype(np.float32)
    alibi = (slopes[:, None, None] * distance)[None]
    add(f"ALiBi causal {n}", n, [grouped(n, bias=alibi)], 1.5, given={"slopes": slopes}, causal=1, pairs=half)
    table = rng.standard_normal((HEADS, 257)).astype(np.float32)  # T5: 128 distances to either side
    places = np.clip(np.arange(n) - np.arange(n)[:, None], -128, 128) + 128
    t5 = np.ascontiguousarray(table[:, places][None])
    add(f"T5 bias {n}", n, [multihead(bias=t5), standard(bias=t5)], 1.5, given={"table": table})
    capped = [grouped(n, softcap=50.0), standard(is_causal=1, softcap=50.0)]
    add(f"softcap causal {n}", n, capped, 1.5, softcap=50.0, causal=1, pairs=half)
    sink = rng.standard_normal(HEADS).astype(np.float32)
    add(f"sink causal {n}", n, [grouped(n, sink=sink)], 1.5, given={"sink": sink}, causal=1, pairs=half)
    return found


@dataclass(frozen=True, slots=True)
class Result:
    """A measured row: milliseconds of the own operator, ratios of the rivals over it."""

    row: Row
    milliseconds: float
    ratios: tuple[Ratio, ...]

    @property
    def rate(self) -> float:
        """Operations a second; those that masks leave out are not counted."""
        return self.row.flops / (self.milliseconds * 1e-3)

    @property
    def best(self) -> Ratio | None:
        """The ratio over the fastest rival."""
        return min(self.ratios, key=lambda ratio: ratio.value, default=None)


def run_row(row: Row, setting: Setting) -> Result:
    """Measure one row."""
    own = one_node_model(row.signature, row.attributes, row.inputs)
    contenders: dict[str, Callable[[], None]] = {"own": runner(open_model(own), row.inputs)}
    for rival in row.rivals:
        inputs = {name: row.inputs[name] for name in ("query", "key", "value")} | dict(rival.extra)
        try:
            session = open_model(rival_model(rival, inputs))
            contenders[rival.name] = runner(session, inputs)
            contenders[rival.name]()
        except Exception as error:
            contenders.pop(rival.name, None)
            print(f"  {rival.name} left out: {str(error).splitlines()[0][:120]}")
    return _result(row, _bench(contenders, setting))


def _bench(contenders: Mapping[str, Callable[[], None]], setting: Setting) -> LatencyReport:
    return bench(
        contenders,
        shapes={},
        threads=setting.threads,
        seconds=setting.seconds,
        base="own",
        clock=setting.clock,
    )


def _result(row: Row, report: LatencyReport) -> Result:
    own = next(c for c in report.contenders if c.name == "own")
    return Result(row, own.median_ms, report.ratios)


def decode(setting: Setting, past: int = 2047, kv_heads: int = 4) -> Result:
    """One new token against a cache: the own operator reads it in place, GroupQueryAttention shares its buffer."""
    rng = np.random.default_rng(0)
    total = past + 1
    cache = [rng.standard_normal((1, kv_heads, total, HEAD)).astype(np.float32) for _ in range(2)]
    query = rng.standard_normal((1, HEADS, 1, HEAD)).astype(np.float32)
    signature = Signature(layout="bnsh", lengths=True)
    attributes = Attributes(num_heads=HEADS, kv_heads=kv_heads, scale=HEAD**-0.5, causal=1, lower_right=1)
    inputs = {"query": query, "key": cache[0], "value": cache[1], "key_lengths": np.array([total], np.int32)}
    own = runner(open_model(one_node_model(signature, attributes, inputs)), inputs)

    base = grouped(total)
    slots = ["query", "key", "value", "past_key", "past_value", "lengths", "total"]
    rival = replace(base, slots=slots, attributes={**base.attributes, "kv_num_heads": kv_heads})
    new = [array[:, :, -1:].reshape(1, 1, kv_heads * HEAD) for array in cache]
    given = {"query": query.reshape(1, 1, WIDTH), "key": new[0], "value": new[1], **base.extra}
    session = open_model(rival_model(rival, {**given, "past_key": cache[0], "past_value": cache[1]}))
    binding = session.io_binding()
    held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(a)) for name, a in given.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    for i, name in enumerate(("past_key", "past_value")):
        buffer = onnxruntime.OrtValue.ortvalue_from_numpy(cache[i].copy())
        binding.bind_ortvalue_input(name, buffer)
        binding.bind_ortvalue_output(f"output_{i + 1}", buffer)
    binding.bind_output("output_0", "cpu")
    contenders = {"own": own, "GroupQueryAttention, shared buffer": lambda: session.run_with_iobinding(binding)}
    row = Row(
        name=f"decode past {past}, 12/{kv_heads} heads",
        signature=signature,
        attributes=attributes,
        inputs=inputs,
        rivals=(),
        target=1.0,
        flops=4 * total * WIDTH,
        byte_count=2 * cache[0].nbytes,
    )
    return _result(row, _bench(contenders, setting))


def matmul_rate(clock: Clock) -> Callable[[], float]:
    """Measures float32 operations a second of onnxruntime's MatMul at 2048 x 1024 x 2048, the best of five runs."""
    m, k, n = 2048, 1024, 2048
    arrays = {"a": np.ones((m, k), np.float32), "b": np.ones((k, n), np.float32)}
    rival = Rival(name="MatMul", domain="", op_type="MatMul", attributes={}, slots=["a", "b"], extra=arrays)
    run = runner(open_model(rival_model(rival, arrays)), arrays)

    def measure() -> float:
        best = float("inf")
        for _ in range(5):
            start = clock()
            run()
            best = min(best, clock() - start)
        return 2.0 * m * k * n / best

    return measure


def table(results: Sequence[Result], peak: float) -> str:
    """The results as Markdown."""
    lines = [
        "| call | own, ms | share of MatMul's rate | ratio over the fastest rival (95 %) | rival | target | met |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        best, target = result.best, result.row.target
        if best is None:
            lines.append(
                f"| {result.row.name} | {result.milliseconds:.3f} | {result.rate / peak:.0%} | not run | | | |"
            )
            continue
        met = "yes" if best.value >= (0.97 if target == 1.0 else target) or best.low <= 1.0 == target else "no"
        lines.append(
            f"| {result.row.name} | {result.milliseconds:.3f} | {result.rate / peak:.0%} "
            f"| {best.value:.2f} ({best.low:.2f} to {best.high:.2f}) | {best.of} | {target:g} | {met} |"
        )
    return "\n".join(lines)


def roofline(results: Sequence[Result], peak: float) -> str:
    """Reached operations a second over operations a byte of input and output, as SVG."""
    width, height, edge = 720, 420, 60
    points = [(r.row.flops / r.row.byte_count, r.rate, r.row.name) for r in results]
    low_x, high_x = 0.1, max(x for x, _, _ in points) * 3
    low_y, high_y = min(y for _, y, _ in points) / 3, peak * 2

    def place(x: float, y: float) -> tuple[float, float]:
        across = np.log(x / low_x) / np.log(high_x / low_x)
        up = np.log(y / low_y) / np.log(high_y / low_y)
        return edge + across * (width - 2 * edge), height - edge - up * (height - 2 * edge)

    left, roof = place(low_x, peak)
    right, _ = place(high_x, peak)
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="10">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<line x1="{left:.1f}" y1="{roof:.1f}" x2="{right:.1f}" y2="{roof:.1f}" stroke="black"/>',
        f'<text x="{left:.1f}" y="{roof - 5:.1f}">onnxruntime MatMul {peak / 1e9:.0f} GFLOP/s</text>',
        f'<text x="{width / 2 - 120}" y="{height - 20}">operations per byte of input and output (log)</text>',
        f'<text x="15" y="{height / 2 + 60}" transform="rotate(-90 15 {height / 2 + 60})">operations/s (log)</text>',
    ]
    for x, y, name in points:
        cx, cy = place(x, y)
        drawn.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="#1f6feb"><title>{name}</title></circle>')
        drawn.append(f'<text x="{cx + 5:.1f}" y="{cy + 3:.1f}" font-size="7">{name}</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"


def page(results: Sequence[Result], setting: Setting, peak: float, isa: str) -> str:
    """The result page: machine, versions, method, table."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.processor())
    how = "wall time" if setting.clock is time.perf_counter else "processor time, because the machine was shared"
    threads = "one thread" if setting.threads == 1 else f"{setting.threads} threads"
    older = "onnxruntime and the own operator were kept from newer instructions by benchmarks/older_processor.py. "
    return "\n".join(
        [
            f"# FlashAttention on the CPU, {isa}, {threads}",
            "",
            f"{processor}; onnxruntime {onnxruntime.__version__}, Python {platform.python_version()}. float32, "
            f"12 heads of 64, batch 1 unless said, {threads}, {how}. {older if 'OLDER_PROCESSOR' in os.environ else ''}"
            f"The best rate of onnxruntime's float32 "
            f"MatMul in the same run was {peak / 1e9:.0f} GFLOP/s. Contenders share one pool of threads, and "
            "inputs start at multiples of 64 bytes. Ratios are medians over interleaved rounds: 1.5 says that "
            "the own operator is 1.5 times as fast.",
            "",
            table(results, peak),
            "",
            "Not run here: NVIDIA and AMD GPUs.",
            "",
            "Made by `benchmarks/attention.py --write`; the roofline plot has the same name and ends in `.svg`.",
            "",
        ]
    )


def own_isa() -> str:
    """Name of the instruction set the library chose."""
    import ctypes

    from deployml.custom_ops import library_path

    name = ctypes.CDLL(str(library_path())).deployml_cpu_isa
    name.restype = ctypes.c_char_p
    return name().decode()


def main() -> None:
    """Measure, print, and on request write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="a row")
    parser.add_argument("--quick", action="store_true", help="two seconds a row")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, processor time")
    parser.add_argument("--write", action="store_true", help="write the result page and the plot")
    arguments = parser.parse_args()
    threads = 1 if arguments.cpu_time else arguments.threads
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    seconds = 2.0 if arguments.quick else arguments.seconds
    setting = Setting(threads=threads, clock=clock, seconds=seconds)
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    rate = matmul_rate(clock)
    results, peak = [], rate()
    print(f"MatMul {peak / 1e9:.0f} GFLOP/s, {own_isa()}")

    def show(result: Result) -> None:
        nonlocal peak
        peak = max(peak, rate())
        results.append(result)
        print(table([result], peak).splitlines()[-1], flush=True)

    for row in rows():
        if arguments.only in row.name:
            show(run_row(row, setting))
    if arguments.only in "decode":
        for kv_heads in (4, 12):
            show(decode(setting, kv_heads=kv_heads))
    if arguments.write:
        RESULTS.mkdir(exist_ok=True)
        name = f"attention-{own_isa()}-{threads}-thread{'s' if threads > 1 else ''}"
        (RESULTS / f"{name}.md").write_text(page(results, setting, peak, own_isa()))
        (RESULTS / f"{name}.svg").write_text(roofline(results, peak))


if __name__ == "__main__":
    main()
