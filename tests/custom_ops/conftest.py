"""Sessions for the operator tests."""

from __future__ import annotations

from collections.abc import Callable

import onnxruntime
import pytest

from deployml.custom_ops import library_path, register

MakeOptions = Callable[..., onnxruntime.SessionOptions]


@pytest.fixture(scope="session")
def options() -> MakeOptions:
    """Makes session options: ``options("FlashAttention_mask", library=True, threads=2)``; no names register all."""
    if library_path("cpu") is None:
        pytest.skip("not run: the CPU operator library is not built (python -m deployml.custom_ops.build)")

    def make(*only: str, library: bool = True, threads: int = 2) -> onnxruntime.SessionOptions:
        made = onnxruntime.SessionOptions()
        made.intra_op_num_threads = threads
        made.log_severity_level = 4
        if library:
            register(made, only=only)
        return made

    return make
