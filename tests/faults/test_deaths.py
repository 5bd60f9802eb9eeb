"""The process that works really dies, in each command and stage: one message, exit 2, every file whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import parser

from .corpus import good

#: Python runs this when it starts: a run of onnxruntime under the function named in FATAL_IN ends the process.
_FATAL = """
import os, signal, sys

def _under(name):
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == name:
            return True
        frame = frame.f_back
    return False

def _wrapped(real):
    def run(*arguments, **options):
        if _under(os.environ["FATAL_IN"]):
            os.kill(os.getpid(), getattr(signal, os.environ["FATAL_BY"]))
        return real(*arguments, **options)
    return run

if "FATAL_IN" in os.environ:
    import onnxruntime
    for name in ("run", "run_with_ort_values", "run_with_iobinding"):
        setattr(onnxruntime.InferenceSession, name, _wrapped(getattr(onnxruntime.InferenceSession, name)))
"""

#: Takes 8 GiB for two numbers.
HUNGRY = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 4] x) => (float[n, 4] y)
{
  size = Constant <value_ints = [1048576, 2048]> ()
  wide = ConstantOfShape (size)
  [most] top = ReduceMax <keepdims = 0> (wide)
  y = Add (x, top)
}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A good model, and an earlier export that must stay whole."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_FATAL)
    onnx.save(good(), tmp_path / "good.onnx")
    for name in ("out.onnx", "out.report.json", "out.report.html"):
        (tmp_path / name).write_bytes(b"the earlier one")
    return tmp_path


def ran(folder: Path, *arguments: object, limit: int | None = None, **environment: str) -> subprocess.CompletedProcess:
    """A command as a program, with its memory limited to ``limit`` bytes."""

    def confined() -> None:
        import resource

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    path = os.pathsep.join([str(folder / "hook"), *(p for p in sys.path if p)])
    return subprocess.run(
        [sys.executable, "-m", "deployml.cli", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=confined,
    )


def earlier_ones(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name.startswith((".", "out."))}


_EARLIER = dict.fromkeys(("out.onnx", "out.report.json", "out.report.html"), b"the earlier one")


@pytest.mark.parametrize(
    ("command", "function", "stage", "by"),
    [
        (("optimize", "good.onnx", "-o", "out.onnx", "--no-bench"), "measure_parity", "validate", "SIGSEGV"),
        (("optimize", "good.onnx", "-o", "out.onnx", "--no-validate"), "measure_latency", "bench", "SIGABRT"),
        (("validate", "good.onnx", "--against", "good.onnx"), "measure_parity", "validate", "SIGABRT"),
        (("bench", "good.onnx", "--seconds", "0.1"), "measure_latency", "bench", "SIGSEGV"),
        (("bench", "good.onnx", "--seconds", "0.1"), "profile", "bench", "SIGBUS"),
    ],
)
def test_a_crash_is_one_message(folder, command, function, stage, by):
    done = ran(folder, *command, FATAL_IN=function, FATAL_BY=by)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    first, hint = done.stderr.strip().splitlines()
    assert first.startswith("error: ") and f"crashed in the stage '{stage}' ({by})" in first
    assert hint.startswith("  -> ") and (f"--no-{stage}" in hint) == (command[0] == "optimize")
    assert earlier_ones(folder) == _EARLIER


def test_a_crash_of_check_is_one_message_and_json_where_asked(folder):
    assert ran(folder, "lock", "good.onnx").returncode == 0
    done = ran(folder, "check", "good.onnx", "--json", FATAL_IN="_run", FATAL_BY="SIGSEGV")
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 2 and "crashed in the stage 'run' (SIGSEGV)" in error["message"]
    assert done.stderr == ""


def test_a_process_that_the_system_ends_reads_as_lack_of_memory(folder):
    done = ran(folder, *("optimize", "good.onnx", "-o", "out.onnx"), FATAL_IN="measure_parity", FATAL_BY="SIGKILL")
    assert done.returncode == 2
    assert done.stderr.startswith("error: memory ran out in the stage 'validate'")
    assert "--no-validate" in done.stderr
    assert earlier_ones(folder) == _EARLIER


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run: needs Linux (RLIMIT_AS)")
@pytest.mark.parametrize(
    "command",
    [
        ("optimize", "hungry.onnx", "-o", "out.onnx"),
        ("validate", "hungry.onnx", "--against", "hungry.onnx"),
        ("bench", "hungry.onnx", "--seconds", "0.1"),
        ("check", "hungry.onnx"),
    ],
    ids=lambda command: command[0],
)
def test_memory_that_runs_out_is_one_message(folder, command):
    onnx.save(parser.parse_model(HUNGRY), folder / "hungry.onnx")
    assert ran(folder, "lock", "hungry.onnx").returncode == 0
    done = ran(folder, *command, limit=6 << 30)
    assert done.returncode == 2, done.stderr
    first, hint = done.stderr.strip().splitlines()
    assert first.startswith("error: the ") and first.endswith(" ran out of memory")
    assert hint.startswith("  -> ") and done.stdout == ""
    assert earlier_ones(folder) == _EARLIER
