"""The whole case matrix and random calls under the address, undefined and thread sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from deployml.custom_ops.build import build

SCRIPT = '''
import ctypes, sys
import onnxruntime
from deployml.custom_ops.flash_attention.cases import cases, random_case
from deployml.custom_ops.flash_attention.check import check_case
from deployml.custom_ops.mixture_of_experts import cases as expert_cases, check as expert_check
from deployml.custom_ops.skip_normalization import cases as norm_cases, check as norm_check

def limited(case):
    """Three threads and one name: the schemas of all names take most of the time."""
    ctypes.CDLL(sys.argv[1]).deployml_register_only(case.signature.op_type.encode())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 3
    options.register_custom_ops_library(sys.argv[1])
    return options

for case in [*cases()[:: int(sys.argv[2])], *map(random_case, range(int(sys.argv[3])))]:
    options = limited(case)
    result = check_case(case, options)
    if not result.passed:
        print(case.name, result.error, result.granted)
for case in [*norm_cases.cases(), *map(norm_cases.random_case, range(int(sys.argv[3])))]:
    options = limited(case)
    result = norm_check.check_case(case, options)
    if not result.passed:
        print(case.name, result.errors, result.granted)
for case in [*expert_cases.cases(), *map(expert_cases.random_case, range(int(sys.argv[3])))]:
    options = limited(case)
    result = expert_check.check_case(case, options)
    if not result.passed:
        print(case.name, result.error, result.granted)
print("done")
'''


def runtime_of(sanitizer: str) -> str:
    """Path of a sanitizer's runtime, which must be in the process before Python starts."""
    name = {"address,undefined": "libasan.so", "thread": "libtsan.so"}[sanitizer]
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx512_bf16", "avx512", "avx2", "portable"])
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_clean_under_sanitizers(sanitizer, isa, tmp_path):
    if shutil.which("g++") is None or shutil.which("cmake") is None:
        pytest.skip("not run: no g++ or cmake here")
    library = build(sanitize=sanitizer, output=tmp_path)
    step, seeds = ("1", "200") if sanitizer != "thread" else ("7", "20")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), step, seeds],
        env={
            **os.environ,
            "LD_PRELOAD": runtime_of(sanitizer),
            "DEPLOYML_CPU_ISA": isa,
            "ASAN_OPTIONS": "detect_leaks=0",
            "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
            # onnxruntime is not instrumented, so its own synchronisation is not seen; ours is.
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == "done\n"
