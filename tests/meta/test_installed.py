"""The installed package: what a wheel holds, how fast it starts, what it does not import."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("layer", ["runtime", "passes", "exporter", "custom_ops", "cli"])
def test_bare_names_are_not_importable(layer, tmp_path):
    done = run(f"import {layer}", cwd=tmp_path)
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr


LIGHT = {
    "import deployml": ("torch", "onnxruntime", "onnx", "typer", "transformers"),
    "from deployml.cli import main; main(['--help'])": ("torch", "onnxruntime", "onnx", "transformers"),
    "from deployml.cli import main; main(['export', '--help'])": ("torch", "onnxruntime", "onnx", "transformers"),
    "from deployml.cli import main; main(['explain', 'ATT102'])": ("torch", "transformers"),
    "from deployml.cli import main; main(['doctor'])": ("torch", "transformers"),
    "import deployml; deployml.optimize; deployml.session; deployml.explain; deployml.validate; deployml.bench": (
        "torch",
        "transformers",
    ),
}


@pytest.mark.parametrize("code", LIGHT)
def test_what_is_not_imported(code, tmp_path):
    done = run(f"{code}\nimport sys\nprint('LOADED', *[m for m in {LIGHT[code]} if m in sys.modules])", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_help_starts_fast(tmp_path):
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert run("from deployml.cli import main; main(['--help'])", cwd=tmp_path).returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


def test_every_public_name_resolves(tmp_path):
    done = run(
        "import deployml; print([getattr(deployml, n) for n in deployml.__all__]); deployml.nothing", cwd=tmp_path
    )
    assert "AttributeError: module 'deployml' has no attribute 'nothing'" in done.stderr, done.stderr


@pytest.mark.slow
def test_a_wheel_holds_one_package_and_what_it_needs(tmp_path):
    copy = tmp_path / "source"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "out", "build", "__pycache__", "*.so"))
    wheel_folder = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(wheel_folder), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = wheel_folder.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"deployml"}
    for needed in (
        "__init__.py",
        "cli.py",
        "py.typed",
        "exporter/export.py",
        "passes/registry.py",
        "runtime/report.py",
    ):
        assert f"deployml/{needed}" in names
    assert "deployml/custom_ops/lib/libdeployml_ops_cpu.so" in names
    unwanted = (".cc", ".cu", ".pyc", "CMakeLists.txt")
    assert [name for name in names if name.endswith(unwanted) or "/tests/" in name] == []
    missing = [
        path.relative_to(ROOT).as_posix()
        for layer in ("exporter", "passes", "custom_ops", "runtime")
        for path in sorted((ROOT / layer).rglob("*.py"))
        if f"deployml/{path.relative_to(ROOT).as_posix()}" not in names
    ]
    assert missing == []
