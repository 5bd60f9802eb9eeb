"""Sessions and emulated libraries for the operator tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest

from deployml.custom_ops import library_path, register
from deployml.custom_ops.build import Heads, build

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


def build_emulated(heads: Heads, folder: Path) -> Path:
    """The GPU kernels for the emulator."""
    if shutil.which("g++") is None or shutil.which("cmake") is None:
        pytest.skip("not run: no g++ or cmake here")
    return build(backend="emulated", heads=heads, output=folder)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """The kernels for head sizes up to 64 and up to 256."""
    return build_emulated("reduced", tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def full_library(tmp_path_factory) -> Path:
    return build_emulated("full", tmp_path_factory.mktemp("emulated-full"))


@pytest.fixture
def device(monkeypatch):
    """Chooses what is emulated."""

    def choose(name: str, multiprocessors: int = 1, seed: int = 1) -> None:
        monkeypatch.setenv("DEPLOYML_EMULATED_DEVICE", name)
        monkeypatch.setenv("DEPLOYML_EMULATED_MULTIPROCESSORS", str(multiprocessors))
        monkeypatch.setenv("DEPLOYML_EMULATED_SEED", str(seed))

    return choose
