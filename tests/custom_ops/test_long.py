"""The long checks: a hundred thousand random calls under the address and undefined sanitizers, ten thousand runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deployml.custom_ops import library_path
from deployml.custom_ops.build import build

from .test_sanitizers import runtime_of

SCRIPT = Path(__file__).with_name("long_run.py")
CASES = int(os.environ.get("DEPLOYML_FUZZ", "100000"))


def ran(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("isa", "share"), [("avx512_bf16", 0.6), ("avx2", 0.2), ("portable", 0.2)])
def test_random_calls_under_sanitizers(isa, share, tmp_path):
    if shutil.which("g++") is None or shutil.which("cmake") is None:
        pytest.skip("not run: no g++ or cmake here")
    library = build(sanitize="address,undefined", output=tmp_path)
    said = ran(
        *("fuzz", library, {"avx512_bf16": 0, "avx2": 10**6, "portable": 2 * 10**6}[isa], int(CASES * share)),
        LD_PRELOAD=runtime_of("address,undefined"),
        DEPLOYML_CPU_ISA=isa,
        ASAN_OPTIONS="detect_leaks=0",
        UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1",
    )
    assert " 0 failed" in said


@pytest.mark.slow
def test_nothing_leaks_over_ten_thousand_runs():
    library = library_path("cpu")
    if library is None:
        pytest.skip("not run: the CPU operator library is not built")
    assert "10000 runs" in ran("leak", library, 10000)
