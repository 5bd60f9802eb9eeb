"""What a machine reaches: operations a second of a large product, bytes a second of a large sum, with onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np
import onnxruntime
from onnx.parser import parse_model

__all__ = ["Peak", "measured_peak"]

#: (operations a second, bytes a second).
Peak = tuple[float, float]

#: Edges of the products. On a busy machine only the small one ends before the processor is taken away from it.
_SIZES: Final = (1024, 256)
_ELEMENTS: Final = 8 << 20
_SECONDS: Final = 0.25

_PRODUCT: Final = """<ir_version: 10, opset_import: ["": 20]>
g (float[n, n] a, float[n, n] b) => (float[n, n] c) { c = MatMul(a, b) }"""
_SUM: Final = """<ir_version: 10, opset_import: ["": 20]>
g (float[n] a, float[n] b) => (float[n] c) { c = Add(a, b) }"""


@lru_cache
def measured_peak(threads: int) -> Peak:
    """The best of a quarter of a second each: float32 products of 1024 and of 256, a sum of 8 Mi float32 elements.

    Args:
        threads: Threads within an operator.

    Returns:
        Operations a second and bytes a second (two read, one written), as a kernel of onnxruntime's CPU provider
        reaches them; other work on the machine lowers both.
    """
    squares = {size: np.ones((size, size), np.float32) for size in _SIZES}
    products = (2 * size**3 / _best(_runner(_PRODUCT, square, threads)) for size, square in squares.items())
    line = np.ones(_ELEMENTS, np.float32)
    return max(products), 3 * line.nbytes / _best(_runner(_SUM, line, threads))


def _runner(text: str, array: np.ndarray, threads: int) -> Callable[[], None]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    model = parse_model(text).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("a", array)
    binding.bind_cpu_input("b", array)
    binding.bind_ortvalue_output("c", onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(array)))
    return lambda: session.run_with_iobinding(binding)


def _best(run: Callable[[], None]) -> float:
    run()
    end, best = time.perf_counter() + _SECONDS, float("inf")
    while time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
