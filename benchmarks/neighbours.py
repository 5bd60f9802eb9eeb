"""Fused operators around attention against the plain nodes they stand for: which of them pay on the CPU.

    python benchmarks/neighbours.py                    # prints the table
    python benchmarks/neighbours.py --only Gelu
    python benchmarks/neighbours.py --write            # also writes benchmarks/results/neighbours.md

A ratio is the median over interleaved rounds of (plain time / fused time) with its 95 % interval, one thread,
processor time: 1.5 says that the fused operator is 1.5 times as fast, 0.7 that fusing would slow the model down.
onnxruntime's own graph optimizer is off on both sides, or it would fuse the plain form too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from deployml.custom_ops import DOMAIN, register
from deployml.runtime.latency import bench

RESULTS = Path(__file__).resolve().parent / "results" / "neighbours.md"
WIDTH, INNER, VOCABULARY, POSITIONS = 768, 3072, 30522, 512
HEADS, HEAD = 12, 64
TOKENS = ((1, 1), (1, 128), (8, 128))

Array = np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One fused operator and the plain nodes it stands for, as bodies of an ONNX text.

    Attributes:
        name: The fused operator.
        inputs: Declarations such as "float[b,s,768] x".
        plain, fused: Node statements that make ``y``.
        constants: Weights by name.
        feeds: From (batch, length) to inputs by name.
        granted: Largest difference of the two, relative to the largest value.
    """

    name: str
    inputs: str
    plain: str
    fused: str
    constants: Mapping[str, Array]
    feeds: Callable[[int, int], Mapping[str, Array]]
    granted: float = 1e-5


def _random(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def _wide(width: int, *names: str) -> Callable[[int, int], Mapping[str, Array]]:
    return lambda batch, length: {name: _random(batch, length, width) + i for i, name in enumerate(names)}


def _pairs() -> Iterator[Pair]:
    norm = {"scale": _random(WIDTH), "shift": _random(WIDTH)}
    yield Pair(
        name="SkipLayerNormalization",
        inputs="float[b,s,768] x, float[b,s,768] r",
        plain="a = Add(x, r) y = LayerNormalization <axis = -1, epsilon = 1e-5> (a, scale, shift)",
        fused="y = com.microsoft.SkipLayerNormalization <epsilon = 1e-5> (x, r, scale, shift)",
        constants=norm,
        feeds=_wide(WIDTH, "x", "r"),
    )
    for summed in ("Sum", "Add"):
        yield Pair(
            name=f"{DOMAIN}::SkipNormalization_shift, of {summed} and LayerNormalization",
            inputs="float[b,s,768] x, float[b,s,768] r",
            plain=f"a = {summed}(x, r) y = LayerNormalization <axis = -1, epsilon = 1e-5> (a, scale, shift)",
            fused=f"y = {DOMAIN}.SkipNormalization_shift <epsilon = 1e-5> (x, r, scale, shift)",
            constants=norm,
            feeds=_wide(WIDTH, "x", "r"),
        )
        yield Pair(
            name=f"{DOMAIN}::SkipNormalization_rms, of {summed} and SimplifiedLayerNormalization",
            inputs="float[b,s,768] x, float[b,s,768] r",
            plain=f"a = {summed}(x, r) y = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (a, scale)",
            fused=f"y = {DOMAIN}.SkipNormalization_rms <epsilon = 1e-5> (x, r, scale)",
            constants={"scale": norm["scale"]},
            feeds=_wide(WIDTH, "x", "r"),
        )
    root = "sq = Mul(a, a) m = ReduceMean <keepdims = 1> (sq, last) e = Add(m, eps) d = Sqrt(e) i = Reciprocal(d)"
    yield Pair(
        name="SkipSimplifiedLayerNormalization, of Add, Mul, ReduceMean, ...",
        inputs="float[b,s,768] x, float[b,s,768] r",
        plain=f"a = Add(x, r) {root} n = Mul(a, i) y = Mul(n, scale)",
        fused="y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, r, scale)",
        constants={"scale": norm["scale"], "last": np.array([-1]), "eps": np.float32(1e-5)},
        feeds=_wide(WIDTH, "x", "r"),
    )
    yield Pair(
        name="SkipSimplifiedLayerNormalization, of Add and SimplifiedLayerNormalization",
        inputs="float[b,s,768] x, float[b,s,768] r",
        plain="a = Add(x, r) y = SimplifiedLayerNormalization <axis = -1, epsilon = 1e-5> (a, scale)",
        fused="y = com.microsoft.SkipSimplifiedLayerNormalization <epsilon = 1e-5> (x, r, scale)",
        constants={"scale": norm["scale"]},
        feeds=_wide(WIDTH, "x", "r"),
    )
    yield Pair(
        name="BiasGelu, of Add and Gelu",
        inputs="float[b,s,3072] x",
        plain="a = Add(x, bias) y = com.microsoft.Gelu(a)",
        fused="y = com.microsoft.BiasGelu(x, bias)",
        constants={"bias": _random(INNER)},
        feeds=_wide(INNER, "x"),
    )
    erf = "d = Div(a, root) e = Erf(d) f = Add(e, one) g = Mul(a, f) y = Mul(g, half)"
    gelu = {"bias": _random(INNER), "root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    yield Pair(
        name="BiasGelu, of Add and Erf",
        inputs="float[b,s,3072] x",
        plain=f"a = Add(x, bias) {erf}",
        fused="y = com.microsoft.BiasGelu(x, bias)",
        constants=gelu,
        feeds=_wide(INNER, "x"),
    )
    tanh = (
        "p = Mul(a, a) q = Mul(p, a) c = Mul(q, cubic) t = Add(a, c) u = Mul(t, factor) h = Tanh(u) f = Add(h, one) "
        "g = Mul(a, f) y = Mul(g, half)"
    )
    yield Pair(
        name="FastGelu with bias, of Add and Tanh",
        inputs="float[b,s,3072] x",
        plain=f"a = Add(x, bias) {tanh}",
        fused="y = com.microsoft.FastGelu(x, bias)",
        constants={**gelu, "cubic": np.float32(0.044715), "factor": np.float32((2 / np.pi) ** 0.5)},
        feeds=_wide(INNER, "x"),
    )
    yield Pair(
        name="QuickGelu",
        inputs="float[b,s,3072] x",
        plain="a = Mul(x, alpha) g = Sigmoid(a) y = Mul(x, g)",
        fused="y = com.microsoft.QuickGelu <alpha = 1.702> (x)",
        constants={"alpha": np.float32(1.702)},
        feeds=_wide(INNER, "x"),
    )
    yield _rotary()
    yield _complex_rotary()
    yield _sectioned_rotary()
    yield from _causal_convolutions()
    yield _embeddings()
    yield _experts()


def _rotary() -> Pair:
    angle = np.outer(np.arange(POSITIONS), 1e4 ** (-np.arange(0, HEAD, 2) / HEAD)).astype(np.float32)
    halves = (
        "lo = Slice(x, zero, half, last) hi = Slice(x, half, whole, last) n = Neg(hi) t = Concat <axis = -1> (n, lo)"
    )
    table = "c = Gather(wide_cos, p) d = Gather(wide_sin, p) c1 = Unsqueeze(c, one) d1 = Unsqueeze(d, one)"
    integers = {"zero": [0], "half": [HEAD // 2], "whole": [HEAD], "last": [3], "one": [1]}
    return Pair(
        name="RotaryEmbedding",
        inputs="float[b,12,s,64] x, int64[b,s] p",
        plain=f"{table} {halves} u = Mul(x, c1) v = Mul(t, d1) y = Add(u, v)",
        fused="y = com.microsoft.RotaryEmbedding <num_heads = 12> (x, p, cos, sin)",
        constants={
            "cos": np.cos(angle),
            "sin": np.sin(angle),
            "wide_cos": np.tile(np.cos(angle), 2),
            "wide_sin": np.tile(np.sin(angle), 2),
            **{name: np.array(value) for name, value in integers.items()},
        },
        feeds=lambda batch, length: {
            "x": _random(batch, HEADS, length, HEAD),
            "p": np.tile(np.arange(length), (batch, 1)),
        },
    )


def _complex_rotary() -> Pair:
    """What torch.view_as_complex is exported to."""
    angle = np.outer(np.arange(POSITIONS), 1e4 ** (-np.arange(0, HEAD, 2) / HEAD)).astype(np.float32)
    polar = np.stack([np.cos(angle), np.sin(angle)], -1)
    parts = "c = Slice(f, zero, one, last) d = Slice(f, one, two, last) a = Slice(p, zero, one, last) "
    return Pair(
        name="RotaryEmbedding, of complex numbers",
        inputs="float[b,s,768] x",
        plain=(
            "n = Shape <start = 1, end = 2> (x) g = Slice(polar, zero, n, zero) f = Unsqueeze(g, heads) "
            "p = Reshape(x, pairs) "
            f"{parts} b = Slice(p, one, two, last) ac = Mul(a, c) bd = Mul(b, d) ad = Mul(a, d) bc = Mul(b, c) "
            "r = Sub(ac, bd) i = Add(ad, bc) o = Concat <axis = -1> (r, i) y = Reshape(o, flat)"
        ),
        fused="y = com.microsoft.RotaryEmbedding <num_heads = 12, interleaved = 1> (x, zero, cos, sin)",
        constants={
            "polar": polar,
            "cos": np.cos(angle),
            "sin": np.sin(angle),
            "zero": np.array([0]),
            "one": np.array([1]),
            "two": np.array([2]),
            "last": np.array([-1]),
            "heads": np.array([1]),
            "pairs": np.array([0, 0, HEADS, HEAD // 2, 2]),
            "flat": np.array([0, 0, WIDTH]),
        },
        feeds=_wide(WIDTH, "x"),
    )


def _sectioned_rotary() -> Pair:
    """RotaryEmbedding over rows put together from three positions a token, against MRotaryEmbedding."""
    angle = np.outer(np.arange(POSITIONS), 1e4 ** (-np.arange(0, HEAD, 2) / HEAD)).astype(np.float32)
    sizes = (8, 12, 12)
    parts = [f"{t}{i}" for t in "cs" for i in range(3)]
    split = "p0, p1, p2 = Split <axis = 0, num_outputs = 3> (p) "
    split += "".join(f"q{i} = Squeeze(p{i}, zero) {t}{i} = Gather({t}t{i}, q{i}) " for t in "c" for i in range(3))
    split += "".join(f"s{i} = Gather(st{i}, q{i}) " for i in range(3))
    bounds = np.cumsum((0, *sizes))
    tables = {
        name: function(angle[:, bounds[i] : bounds[i + 1]])
        for name, i, function in ((f"{p[0]}t{p[1]}", int(p[1]), np.cos if p[0] == "c" else np.sin) for p in parts)
    }
    return Pair(
        name="MRotaryEmbedding, of RotaryEmbedding with gathered tables",
        inputs="float[b,s,768] x, int64[three,b,s] p",
        plain=(
            f"{split} c3 = Concat <axis = -1> (c0, c1, c2) s3 = Concat <axis = -1> (s0, s1, s2) cr = Reshape(c3, rows) "
            "sr = Reshape(s3, rows) h = Shape(q0) m = ReduceProd <keepdims = 0> (h) o = Range(nought, m, unit) "
            "at = Reshape(o, h) y = com.microsoft.RotaryEmbedding <num_heads = 12> (x, at, cr, sr)"
        ),
        fused="y = com.microsoft.MRotaryEmbedding <num_heads = 12, mrope_section = [8, 12, 12]> (x, p, cos, sin)",
        constants={
            **tables,
            "cos": np.cos(angle),
            "sin": np.sin(angle),
            "zero": np.array([0]),
            "rows": np.array([-1, HEAD // 2]),
            "nought": np.array(0),
            "unit": np.array(1),
        },
        feeds=lambda batch, length: {
            "x": _random(batch, length, WIDTH),
            "p": np.tile(np.arange(length), (3, batch, 1)),
        },
    )


def _causal_convolutions() -> Iterator[Pair]:
    """A depthwise convolution of four taps, as Mamba and gated delta nets have it, and its activation."""
    weight = {"k": _random(WIDTH, 1, 4), "bias": _random(WIDTH)}
    conv = f"<group = {WIDTH}, kernel_shape = [4], pads = [3, 0]>"
    turned = "t = Transpose <perm = [0, 2, 1]> (x)"
    yield Pair(
        name="CausalConvWithState, of Conv and SiLU",
        inputs="float[b,s,768] x",
        plain=f"{turned} c = Conv {conv} (t, k, bias) g = Sigmoid(c) y = Mul(c, g)",
        fused=f'{turned} y, z = com.microsoft.CausalConvWithState <activation = "silu"> (t, k, bias)',
        constants=weight,
        feeds=_wide(WIDTH, "x"),
    )


def _embeddings() -> Pair:
    def feeds(batch: int, length: int) -> dict[str, Array]:
        rng = np.random.default_rng(length)
        return {"ids": rng.integers(0, VOCABULARY, (batch, length)), "seg": rng.integers(0, 2, (batch, length))}

    parts = "w = Gather(words, ids) t = Gather(kinds, seg)"
    sums = "n = Shape <start = 1, end = 2> (ids) r = Slice(places, zero, n, zero) a = Add(w, t) c = Add(a, r)"
    return Pair(
        name="EmbedLayerNormalization",
        inputs="int64[b,s] ids, int64[b,s] seg",
        plain=f"{parts} {sums} y = LayerNormalization <axis = -1> (c, scale, shift)",
        fused=(
            "i = Cast <to = 6> (ids) j = Cast <to = 6> (seg) "
            "y, m = com.microsoft.EmbedLayerNormalization <epsilon = 1e-5> (i, j, words, places, kinds, scale, shift)"
        ),
        constants={
            "words": _random(VOCABULARY, WIDTH),
            "places": _random(POSITIONS, WIDTH),
            "kinds": _random(2, WIDTH),
            "scale": _random(WIDTH),
            "shift": _random(WIDTH),
            "zero": np.array([0]),
        },
        feeds=feeds,
    )


def _experts(experts: int = 8, chosen: int = 2, width: int = 512, inner: int = 1024) -> Pair:
    """Rows sorted by expert and one product per expert, as our export writes it, against MoE with SwiGLU."""
    up, down = _random(experts, 2 * inner, width) * 0.05, _random(experts, width, inner) * 0.05
    woven = np.empty_like(up)
    woven[:, 0::2], woven[:, 1::2] = up[:, :inner], up[:, inner:]
    constants: dict[str, Array] = {
        "woven": woven,
        "down": down,
        "k": np.array([chosen]),
        "count": np.array(chosen),
        "ids": np.arange(experts),
        "flat": np.array([-1]),
        "a0": np.array([0]),
        "a1": np.array([1]),
        "rows": np.array([-1, chosen, width]),
    }
    for e in range(experts):
        constants |= {f"u{e}": up[e].T.copy(), f"d{e}": down[e].T.copy(), f"e{e}": _one(e), f"f{e}": _one(e + 1)}
    text = (
        "top, at = TopK <axis = -1> (r, k) w = Softmax <axis = -1> (top) i = Reshape(at, flat) ws = Reshape(w, flat) "
        "n = Shape(i) so, perm = TopK <axis = 0, largest = 0> (i, n) token = Div(perm, count) "
        "own = Gather(x, token) wg = Gather(ws, perm) col = Unsqueeze(ids, a1) row = Unsqueeze(so, a0) "
        "le = LessOrEqual(row, col) li = Cast <to = 7> (le) ends = ReduceSum <keepdims = 0> (li, a1) "
    )
    text += "".join(f"end{e} = Slice(ends, e{e}, f{e}, a0) " for e in range(experts))
    starts = ["a0", *(f"end{e}" for e in range(experts - 1))]
    text += "".join(f"o{e} = Slice(own, {s}, end{e}, a0) p{e} = MatMul(o{e}, u{e}) " for e, s in enumerate(starts))
    text += f"h = Concat <axis = 0> ({', '.join(f'p{e}' for e in range(experts))}) "
    text += "g, l = Split <axis = -1, num_outputs = 2> (h) sg = Sigmoid(g) s1 = Mul(g, sg) act = Mul(s1, l) "
    text += "".join(f"b{e} = Slice(act, {s}, end{e}, a0) q{e} = MatMul(b{e}, d{e}) " for e, s in enumerate(starts))
    text += f"z = Concat <axis = 0> ({', '.join(f'q{e}' for e in range(experts))}) "
    text += (
        "wu = Unsqueeze(wg, a1) zw = Mul(z, wu) sp, inv = TopK <axis = 0, largest = 0> (perm, n) "
        "back = Gather(zw, inv) tk = Reshape(back, rows) y = ReduceSum <keepdims = 0> (tk, a1)"
    )
    moe = 'k = 2, activation_type = "swiglu", swiglu_fusion = 1, normalize_routing_weights = 1, activation_alpha = 1.0'
    return Pair(
        name="MoE, 8 experts, 2 a token",
        inputs="float[t,512] x, float[t,8] r",
        plain=text,
        fused=f"y = com.microsoft.MoE <{moe}, activation_beta = 0.0> (x, r, woven, , down)",
        constants=constants,
        feeds=lambda batch, length: {"x": _random(batch * length, width), "r": _random(batch * length, experts)},
        granted=1e-4,
    )


def _one(number: int) -> Array:
    return np.array([number])


def _session(pair: Pair, body: str) -> onnxruntime.InferenceSession:
    used = {name: value for name, value in pair.constants.items() if _reads(body, name)}
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "{DOMAIN}" : 1]> '
        f"g ({pair.inputs}) => (float y) {{ {body} }}"
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for name, value in used.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    register(options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _reads(body: str, name: str) -> bool:
    text = body.replace("(", " ").replace(")", " ").replace(",", " ")
    return name in text.split()


def measure(pair: Pair, seconds: float) -> list[str]:
    """One table line for each number of tokens."""
    plain, fused = _session(pair, pair.plain), _session(pair, pair.fused)
    lines = []
    for batch, length in TOKENS:
        feeds = dict(pair.feeds(batch, length))
        expected, found = plain.run(["y"], feeds)[0], fused.run(["y"], feeds)[0]
        error = float(np.abs(found - expected).max() / np.abs(expected).max())
        assert error <= pair.granted, f"{pair.name} differs by {error:.1e}"
        report = bench(
            {"fused": lambda f=feeds: fused.run(["y"], f), "plain": lambda f=feeds: plain.run(["y"], f)},
            shapes={name: value.shape for name, value in feeds.items()},
            threads=1,
            seconds=seconds,
            base="fused",
            clock=time.process_time,
        )
        ratio = next(r for r in report.ratios if r.of == "plain")
        shown = f"{ratio.value:.2f} ({ratio.low:.2f}..{ratio.high:.2f})"
        lines.append(f"| {pair.name} | {batch} x {length} | {shown} | {error:.0e} |")
        print(lines[-1], flush=True)
    return lines


def page(lines: list[str]) -> str:
    """The result page."""
    head = (__doc__ or "").split("\n\n")[2].replace("\n", " ")
    return "\n".join(
        [
            "# Fused neighbours of attention on the CPU",
            "",
            head,
            "",
            f"Width {WIDTH}, float32, onnxruntime {onnxruntime.__version__}.",
            "",
            "| fused operator | batch x length | ratio | difference |",
            "|---|---|---:|---:|",
            *lines,
            "",
            "Made by `benchmarks/neighbours.py --write`. Not run: GPUs.",
            "",
        ]
    )


def main() -> None:
    """Measure, print, and on request write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--seconds", type=float, default=3.0, help="a line")
    parser.add_argument("--write", action="store_true", help="write the result page")
    given = parser.parse_args()
    lines = [line for pair in _pairs() if given.only in pair.name for line in measure(pair, given.seconds)]
    if given.write:
        RESULTS.write_text(page(lines))


if __name__ == "__main__":
    main()
