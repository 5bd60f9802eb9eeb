"""The wheel that `make wheel` builds: its tag, and its work where no compiler is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from onnx import parser

ROOT = Path(__file__).resolve().parents[2]

MODEL = """\
<ir_version: 10, opset_import: ["": 20]>
attention (float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v, float[1,4,S,T] bias) => (float[B,4,S,16] y)
<float scale = {0.25}>
{
  kt = Transpose<perm = [0, 1, 3, 2]>(k)
  product = MatMul(q, kt)
  scaled = Mul(product, scale)
  scores = Add(scaled, bias)
  weights = Softmax<axis = -1>(scores)
  y = MatMul(weights, v)
}
"""

#: Runs in the environment that holds the wheel: what is fused there, and whether it computes the same.
USE = """\
import json, shutil, sys
import numpy as np, onnx, onnxruntime
import deployml
from deployml.custom_ops import library_path

source, fused = sys.argv[1:]
rng = np.random.default_rng(0)
shapes = {"q": (2, 4, 37, 16), "k": (2, 4, 41, 16), "v": (2, 4, 41, 16), "bias": (1, 4, 37, 41)}
feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
plain = onnxruntime.InferenceSession(source).run(None, feeds)[0]
own = deployml.session(fused).run(None, feeds)[0]
print(json.dumps({
    "package": deployml.__file__,
    "library": str(library_path()),
    "compilers": [name for name in ("gcc", "g++", "cc", "c++", "clang", "cmake") if shutil.which(name)],
    "operators": [f"{n.domain}::{n.op_type}" for n in onnx.load(fused).graph.node],
    "error": float(np.abs(plain - own).max()),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        [ROOT / ".ci" / "wheel", folder], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip("not run: zig and auditwheel could not be installed")
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_wheel_serves_old_linux_and_any_python(wheel):
    assert "-py3-none-" in wheel.name and "manylinux_2_17_" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "deployml/custom_ops/lib/libdeployml_ops_cpu.so" in names
    assert [name for name in names if name.endswith((".cc", ".h", ".cmake", ".map", ".pyc"))] == []


@pytest.mark.slow
def test_the_wheel_works_where_no_compiler_is(wheel, tmp_path):
    (tmp_path / "model.onnx").write_bytes(parser.parse_model(MODEL).SerializeToString())
    python = _environment(tmp_path / "venv", wheel)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(python), *arguments]
        only = {"PATH": str(python.parent), "HOME": str(tmp_path)}
        return subprocess.run(command, cwd=tmp_path, env=only, capture_output=True, text=True, check=False)

    made = run("-m", "deployml.cli", "optimize", "model.onnx", "-o", "fused.onnx", "--fusion", "always", "--no-bench")
    assert made.returncode == 0, made.stdout + made.stderr
    used = run("-c", USE, "model.onnx", "fused.onnx")
    assert used.returncode == 0, used.stderr
    found = json.loads(used.stdout.splitlines()[-1])
    assert found["package"].startswith(str(tmp_path)) and found["library"].startswith(str(tmp_path))
    assert found["compilers"] == []
    assert "deployml::FlashAttention_bias" in found["operators"]
    assert found["error"] < 1e-6


def _environment(folder: Path, wheel: Path) -> Path:
    """A virtual environment with the wheel in it; what it depends on is read from where this Python has it."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python3.*/site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "dependencies.pth").write_text("\n".join(paths) + "\n")
    return python
