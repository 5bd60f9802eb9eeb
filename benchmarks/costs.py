"""Measures what every operator that could hold an attention takes, and writes the cost table that the lowerings read.

    python benchmarks/costs.py                     # writes passes/attention/costs.json, minutes
    python benchmarks/costs.py --only causal       # these kinds alone; the other rows stay as they are

Contenders of a row take turns, one thread, processor time of the process: a machine that others use disturbs it least.
The table holds microseconds, so that ratios are paired within a row; nothing is measured during an export.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attention as paired
import numpy as np
import onnxruntime
from attention import grouped, multihead, own_isa, standard

from deployml.custom_ops.flash_attention import Attributes, Signature
from deployml.custom_ops.flash_attention.check import one_node_model

PAGE: Final = Path(__file__).resolve().parents[1] / "passes" / "attention" / "costs.json"
LENGTHS: Final = (16, 32, 64, 128, 256, 512, 1024, 2048)
SHAPES: Final = ((12, 64), (4, 32))
LOWEST: Final = float(np.finfo(np.float32).min)

OPERATORS: Final = {
    "MultiHeadAttention": "com.microsoft::MultiHeadAttention",
    "GroupQueryAttention": "com.microsoft::GroupQueryAttention",
    "ai.onnx Attention": "Attention",
}


def kinds(n: int) -> Iterator[tuple[str, dict[str, np.ndarray], dict[str, int], list[paired.Rival]]]:
    """For each kind of site: the own operator's inputs and attributes, and the rivals."""
    rng = np.random.default_rng(0)
    keep = np.arange(n) < max(1, int(0.8 * n))
    heads = paired.HEADS
    bias = rng.standard_normal((1, heads, n, n)).astype(np.float32)
    full = np.ascontiguousarray(np.broadcast_to(keep[None, None, None], (1, 1, n, n)))
    low = np.where(full, 0, LOWEST).astype(np.float32)
    yield "plain", {}, {}, [multihead(), standard()]
    yield "causal", {}, {"causal": 1}, [grouped(n), standard(is_causal=1)]
    padding = [multihead(mask=keep.astype(np.int32)[None]), standard(mask=full)]
    yield "mask", {"mask": keep[None, None, None]}, {}, padding
    yield "bias", {"bias": bias}, {}, [multihead(bias=bias), standard(bias=bias)]
    with_mask = [grouped(n, bias=low), standard(mask=full, is_causal=1)]
    yield "causal+mask", {"mask": keep[None, None, None]}, {"causal": 1}, with_mask
    with_bias = [grouped(n, bias=bias), standard(bias=bias, is_causal=1)]
    yield "causal+bias", {"bias": bias}, {"causal": 1}, with_bias


def measured(n: int, extra: dict, options: dict, rivals: list[paired.Rival], seconds: float) -> dict[str, float]:
    """Microseconds of each operator, the median over interleaved rounds."""
    rng = np.random.default_rng(1)
    width = paired.HEADS * paired.HEAD
    base = {k: rng.standard_normal((1, n, width)).astype(np.float32) for k in ("query", "key", "value")}
    signature = Signature(**dict.fromkeys(extra, True))
    attributes = Attributes(num_heads=paired.HEADS, kv_heads=paired.HEADS, scale=paired.HEAD**-0.5, **options)
    inputs = {**base, **extra}
    model = one_node_model(signature, attributes, inputs)
    runs = {"deployml::FlashAttention": paired.runner(paired.open_model(model), inputs)}
    for rival in rivals:
        given = {**base, **rival.extra}
        name = next(op for text, op in OPERATORS.items() if rival.name.startswith(text))
        runs[name] = paired.runner(paired.open_model(paired.rival_model(rival, given)), given)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end = time.process_time() + seconds
    names = list(runs)
    while time.process_time() < end or len(times[names[0]]) < 7:
        names.reverse()
        for name in names:
            count = 20 if n <= 64 else 3 if n <= 256 else 1
            start = time.process_time()
            for _ in range(count):
                runs[name]()
            times[name].append((time.process_time() - start) / count)
    return {name: round(float(np.median(taken)) * 1e6, 1) for name, taken in sorted(times.items())}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.6, help="a row, processor time")
    parser.add_argument("--longest", type=int, default=max(LENGTHS), help="leave longer rows as they are")
    parser.add_argument("--page", type=Path, default=PAGE, help="the table to write")
    arguments = parser.parse_args()
    onnxruntime.set_global_thread_pool_sizes(1, 1)
    found = json.loads(arguments.page.read_text()) if arguments.page.exists() else {"isa": {}}
    isa = own_isa()
    rows = {(r["kind"], r["heads"], r["head_size"], r["length"]): r for r in found["isa"].get(isa, [])}
    for heads, size in SHAPES:
        paired.HEADS, paired.HEAD = heads, size
        for n in (n for n in LENGTHS if n <= arguments.longest):
            for kind, extra, options, rivals in kinds(n):
                if arguments.only not in kind:
                    continue
                taken = measured(n, extra, options, rivals, arguments.seconds)
                print(isa, kind, heads, size, n, taken, flush=True)
                row = {"kind": kind, "heads": heads, "head_size": size, "length": n, "microseconds": taken}
                rows[kind, heads, size, n] = row
    found["onnxruntime"] = onnxruntime.__version__
    found["machine"] = platform.machine()
    found["threads"] = 1
    found["isa"][isa] = [rows[key] for key in sorted(rows)]
    text = json.dumps({k: v for k, v in found.items() if k != "isa"}, indent=1)
    body = ",\n".join(
        f'  "{name}": [\n' + ",\n".join(f"   {json.dumps(row)}" for row in of) + "\n  ]"
        for name, of in sorted(found["isa"].items())
    )
    arguments.page.write_text(text[:-2] + ',\n "isa": {\n' + body + "\n }\n}\n")


if __name__ == "__main__":
    main()
