import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from deployml.runtime.errors import InputError
from deployml.runtime.files import Staging, atomic_write, recover

OLD = {"X.onnx": b"old model", "X.onnx.data": b"old data", "X.unfused.onnx": b"old unfused", "X.report.json": b"{}"}
NEW = {name: b"new " + name.encode() * 50 for name in OLD}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def held(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def stage(folder: Path, files: dict[str, bytes]) -> None:
    with Staging(folder / "X.onnx") as staging:
        for name, data in files.items():
            staging.write(name, data)


def test_atomic_write_replaces_text_and_bytes(tmp_path):
    path = tmp_path / "новый файл" / "报告 1.json"
    atomic_write(path, "ünï")
    atomic_write(path, b"\x00second")
    assert path.read_bytes() == b"\x00second"
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o077 != 0  # readable for others, as any file is


def test_staging_puts_every_file_in_place_and_leaves_nothing_else(tmp_path):
    put(tmp_path, OLD)
    stage(tmp_path, NEW)
    assert held(tmp_path) == NEW
    assert all(p.is_file() for p in tmp_path.iterdir())


def test_an_error_inside_leaves_the_old_files(tmp_path):
    put(tmp_path, OLD)
    with pytest.raises(RuntimeError, match="boom"), Staging(tmp_path / "X.onnx") as staging:
        staging.write("X.onnx", b"half")
        raise RuntimeError("boom")
    assert held(tmp_path) == OLD
    assert all(p.is_file() for p in tmp_path.iterdir())


def test_leftovers_of_an_earlier_export_are_removed_with_the_commit(tmp_path):
    put(tmp_path, OLD)
    with Staging(tmp_path / "X.onnx") as staging:
        staging.write("X.onnx", b"embedded")
        staging.remove("X.onnx.data")
        assert (tmp_path / "X.onnx.data").exists()
    assert not (tmp_path / "X.onnx.data").exists()


@pytest.mark.parametrize("name", ["../X.onnx", "a/b", "", "..", "PLAN.json"])
def test_names_with_folders_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="plain file name"), Staging(tmp_path / "X.onnx") as staging:
        staging.path(name)


def test_a_folder_where_the_model_goes_is_refused(tmp_path):
    (tmp_path / "X.onnx").mkdir()
    with pytest.raises(InputError, match="folder of that name"), Staging(tmp_path / "X.onnx"):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        atomic_write(tmp_path / "file" / "X.onnx", b"")


def test_a_full_disk_is_a_message_and_the_old_files_stay(tmp_path):
    """A real refusal by the kernel: the file size limit, which ends a write midway as a full disk does."""
    put(tmp_path, OLD)
    script = f"""
        import resource, signal
        from deployml.runtime.files import Staging, atomic_write
        from deployml.runtime.errors import InputError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        def staged():
            with Staging({str(tmp_path / "X.onnx")!r}) as staging:
                staging.write("X.onnx.data", b"d" * 100)
                staging.write("X.onnx", b"x" * 100_000)
        for attempt in (staged, lambda: atomic_write({str(tmp_path / "X.onnx")!r}, b"x" * 100_000)):
            try:
                attempt()
            except InputError as error:
                print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.count("earlier files are untouched") == 2
    assert held(tmp_path) == OLD
    assert all(p.is_file() for p in tmp_path.iterdir())


def test_a_read_only_folder_is_a_message(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)  # the superuser, who runs tests, is refused nothing
    with pytest.raises(InputError, match="no permission") as caught, Staging(tmp_path / "X.onnx"):
        pass
    assert caught.value.hint == "change the permissions or choose another folder"


KILLER = """
import os, signal, sys
from deployml.runtime import files
folder, at = sys.argv[1], int(sys.argv[2])
calls = 0
def counted(original):
    def call(*args, **kwargs):
        global calls
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return original(*args, **kwargs)
    return call
os.replace = counted(os.replace)
os.fsync = counted(os.fsync)
os.unlink = counted(os.unlink)
with files.Staging(folder + "/X.onnx") as staging:
    for name in ("X.onnx", "X.onnx.data", "X.unfused.onnx", "X.report.json"):
        staging.write(name, b"new " + name.encode() * 50)
print("done")
"""


@pytest.mark.parametrize("had_old", [True, False])
def test_killed_at_any_moment_no_mixture_passes_for_a_model(tmp_path, had_old):
    finished = False
    for at in range(40):
        folder = tmp_path / str(at)
        folder.mkdir()
        old = OLD if had_old else {}
        put(folder, old)
        done = subprocess.run([sys.executable, "-c", KILLER, str(folder), str(at)], capture_output=True, text=True)
        finished = done.returncode == 0
        if not finished:
            assert done.returncode == -signal.SIGKILL, done.stderr
        for model in ("X.onnx", "X.unfused.onnx"):
            if (folder / model).exists():  # then its weights are those it was written with
                side = OLD if (folder / model).read_bytes() == OLD[model] else NEW
                assert (folder / model).read_bytes() == side[model]
                assert (folder / "X.onnx.data").read_bytes() == side["X.onnx.data"]
        recover(folder / "X.onnx")
        assert held(folder) in (old, NEW)
        assert all(p.is_file() for p in folder.iterdir())
        if finished:
            break
    assert finished, "the loop must reach the run that nobody kills"
    assert at > 8


def test_a_writer_that_still_runs_is_left_alone(tmp_path):
    with Staging(tmp_path / "X.onnx") as staging:
        staging.write("X.onnx", b"mine")
        assert recover(tmp_path / "X.onnx") is False
        assert staging.folder.exists()
    assert (tmp_path / "X.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("step", ["away", "move", "drop"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_plan_that_leads_out_of_the_folder_is_not_carried_out(tmp_path, step, absolute):
    folder, outside = tmp_path / "models", tmp_path / "precious"
    outside.write_bytes(b"mine")
    forged = folder / ".X.onnx.staging-forged"
    forged.mkdir(parents=True)
    (folder / "precious").write_bytes(b"theirs")
    plan = {"away": [], "move": [], "drop": []} | {step: [str(outside) if absolute else "../precious"]}
    (forged / "LOCK").touch()
    (forged / "PLAN.json").write_text(json.dumps(plan))
    assert recover(folder / "X.onnx") is False
    assert outside.read_bytes() == b"mine"
    assert not forged.exists()


def test_unchanged_weights_are_not_touched(tmp_path):
    put(tmp_path, OLD)
    before = os.stat(tmp_path / "X.onnx.data").st_ino
    stage(tmp_path, NEW | {"X.onnx.data": OLD["X.onnx.data"]})
    assert os.stat(tmp_path / "X.onnx.data").st_ino == before
