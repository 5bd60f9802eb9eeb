"""Every command on every bad file: it is told so in one message with a hint, and nothing that was there is touched."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

import deployml

from .corpus import BROKEN, NOT_ONNX, TORCH, UNRUNNABLE, good

#: Seconds that a command may look at a file before the test says that it hangs.
PATIENCE = 60

#: Commands that only read a model, and those that fuse or run it too.
READING = ("explain", "lock", "check")
RUNNING = ("bench", "validate", "validate against")


@pytest.fixture
def patient():
    """Ends a command that hangs, as on a pipe that nobody writes to."""

    def ring(*_):
        raise TimeoutError(f"the command hung for {PATIENCE} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tmp_path):
    """A folder with a good model, its lock, and a finished export that must stay whole."""
    for name in ("good.onnx", "out.onnx", "out.report.json"):
        (tmp_path / name).write_bytes(good().SerializeToString() if name.endswith("onnx") else b"{}")
    deployml.lock(tmp_path / "good.onnx")
    return tmp_path


def arguments(command: str, bad: Path, folder: Path) -> tuple[object, ...]:
    good_model, out = folder / "good.onnx", folder / "out.onnx"
    return {
        "explain": ("explain", bad),
        "lock": ("lock", bad, "-o", folder / "written.lock.json"),
        "check": ("check", bad, "--lock", folder / "good.lock.json"),
        "bench": ("bench", bad, "--seconds", "0.1"),
        "validate": ("validate", bad, "--against", good_model),
        "validate against": ("validate", good_model, "--against", bad),
        "optimize": ("optimize", bad, "-o", out, "--no-bench"),
        "export": ("export", bad, "-o", out, "--no-bench"),
    }[command]


def refused(run, command: str, bad: Path, folder: Path) -> list[str]:
    """What is wrong with the way in which a command refuses a file."""
    before = {p: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p != bad}
    ran = run(*arguments(command, bad, folder))
    after = {p: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p != bad}
    lines = ran.err.strip().splitlines()
    wrong = {
        f"exit status {ran.status}": ran.status != 2,
        "a traceback": "Traceback" in ran.err,
        f"no message with a hint: {ran.err[:300]!r}": not lines[:1]
        or not lines[0].startswith("error: ")
        or "\n  -> " not in ran.err,
        "something on stdout": bool(ran.out),
        f"files changed: {sorted(p.name for p in after.keys() ^ before.keys())}": before != after,
        "a folder left behind": any(p.is_dir() and p.name.startswith(".") for p in folder.iterdir()),
    }
    return [f"{command}: {what}" for what, is_so in wrong.items() if is_so]


def all_refused(run, commands, bad, folder) -> list[str]:
    return [said for command in commands for said in refused(run, command, bad, folder)]


@pytest.mark.parametrize("name", NOT_ONNX)
def test_what_is_no_onnx_file_is_refused_by_every_command(name, folder, deployml_command, patient):
    bad = NOT_ONNX[name](folder)
    assert all_refused(deployml_command, ("optimize", *READING, *RUNNING), bad, folder) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_onnx_file_is_refused_by_every_command(name, folder, deployml_command, patient):
    bad = BROKEN[name](folder)
    assert all_refused(deployml_command, ("optimize", *READING, *RUNNING), bad, folder) == []


@pytest.mark.parametrize("name", UNRUNNABLE)
def test_what_onnxruntime_refuses_is_refused_by_every_command_that_runs_it(name, folder, deployml_command, patient):
    bad = UNRUNNABLE[name](folder)
    assert all_refused(deployml_command, RUNNING, bad, folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in UNRUNNABLE if n != "ir version 999"])  # which optimize mends
def test_what_onnxruntime_refuses_is_not_optimized(name, folder, deployml_command, patient):
    assert all_refused(deployml_command, ("optimize",), UNRUNNABLE[name](folder), folder) == []


@pytest.mark.parametrize("name", TORCH)
def test_what_torch_cannot_load_is_refused(name, folder, deployml_command, patient):
    bad = TORCH[name](folder)
    assert all_refused(deployml_command, ("export", "validate against"), bad, folder) == []
    assert not (folder / "owned").exists() and not Path("owned").exists()


def test_a_file_without_permission_is_refused(folder, deployml_command, patient, monkeypatch):
    bad = folder / "bad.onnx"
    bad.write_bytes(good().SerializeToString())
    if sys.platform == "win32":
        pytest.skip("not run: permissions are others there")
    bad.chmod(0)
    try:
        bad.read_bytes()
    except PermissionError:
        assert all_refused(deployml_command, ("optimize", *READING, *RUNNING), bad, folder) == []
        return
    # The superuser reads it all the same: let opening it fail as it would for others.
    import onnx_ir

    def deny(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(onnx_ir, "load", deny)
    assert refused(deployml_command, "lock", bad, folder) == []


def test_the_good_model_is_refused_by_none(folder, deployml_command):
    (folder / "same.onnx").write_bytes(good().SerializeToString())
    for command in (*READING, *RUNNING):
        ran = deployml_command(*arguments(command, folder / "same.onnx", folder))
        assert ran.status == 0, (command, ran.err)
