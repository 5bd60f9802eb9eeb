"""A watched process: what it returns comes back, and its death is one message that names the stage."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployml.runtime import crumbs, supervise
from deployml.runtime.errors import ToolchainError
from deployml.runtime.supervise import supervised

COMMANDS = "dying"


@pytest.fixture(autouse=True)
def findable(monkeypatch):
    """The watched process finds the commands as this one would."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.parametrize("status", [0, 1, 3, 70])
def test_the_exit_status_comes_back(status):
    assert supervised(COMMANDS, "ends", [str(status)]) == status


def test_a_crash_names_stage_signal_and_what_to_leave_out():
    with pytest.raises(ToolchainError, match=r"crashed in the stage 'validate' \(SIGSEGV\)") as caught:
        supervised(COMMANDS, "crashes", ["export"])
    assert "--no-validate" in caught.value.hint


def test_debug_shows_where_the_crash_was(capfd):
    with pytest.raises(ToolchainError):
        supervised(COMMANDS, "crashes", ["export", "--debug"])
    said = capfd.readouterr().err
    assert "Segmentation fault" in said and "in crashes" in said


def test_a_kill_reads_as_lack_of_memory():
    with pytest.raises(ToolchainError, match=r"memory ran out in the stage 'validate'.*SIGKILL"):
        supervised(COMMANDS, "is_killed", ["check", "SIGKILL"])


def test_a_stage_that_is_over_is_not_blamed():
    with pytest.raises(ToolchainError, match=r"^the command crashed \(SIGABRT\)"):
        supervised(COMMANDS, "crashes_after_a_stage", ["check"])


def test_a_signal_that_someone_sent_is_no_crash():
    assert supervised(COMMANDS, "is_killed", ["check", "SIGTERM"]) == 128 + signal.SIGTERM


def test_drafts_are_taken_away_and_files_are_whole(tmp_path):
    old = tmp_path / "m.onnx"
    old.write_bytes(b"whole")
    with pytest.raises(ToolchainError, match="files that were there are whole"):
        supervised(COMMANDS, "crashes_with_a_draft", ["export", str(old)])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"m.onnx": b"whole"}


def test_a_scratch_folder_is_taken_away(tmp_path):
    (tmp_path / "mine").mkdir()
    assert supervised(COMMANDS, "is_ended_with_a_scratch_folder", [str(tmp_path)]) == 128 + signal.SIGTERM
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_crash_while_python_goes_down_changes_no_verdict():
    assert supervised(COMMANDS, "crashes_at_the_end", ["check"]) == 3


def _watcher(tmp_path) -> tuple[subprocess.Popen, int]:
    """A process that watches one that waits, and the number of that one."""
    place = tmp_path / "pid"
    code = f"import sys; sys.path[:] = {sys.path!r}; from deployml.runtime.supervise import supervised; "
    code += f"sys.exit(supervised({COMMANDS!r}, 'waits', [{str(place)!r}]))"
    watcher = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.DEVNULL)
    for _ in range(300):
        if place.exists() and place.read_text():
            return watcher, int(place.read_text())
        time.sleep(0.1)
    raise AssertionError("the watched process did not start")


def _gone(pid: int) -> bool:
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().split(")")[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run: needs Linux (prctl, /proc)")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_who_watches_and_who_works_end_together(tmp_path, number, status):
    watcher, pid = _watcher(tmp_path)
    watcher.send_signal(number)
    assert watcher.wait(30) == status
    assert _gone(pid)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="not run: needs POSIX signals")
def test_an_interrupt_of_the_group_is_answered_once(tmp_path):
    code = f"import sys; sys.path[:] = {sys.path!r}; from deployml.runtime.supervise import supervised; "
    code += f"sys.exit(supervised({COMMANDS!r}, 'waits', [{str(tmp_path / 'pid')!r}]))"
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    watcher = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, text=True, **streams)
    for _ in range(300):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            break
        time.sleep(0.1)
    os.killpg(watcher.pid, signal.SIGINT)
    assert watcher.communicate(timeout=30) == ("", "interrupted; no file was changed\n")
    assert watcher.returncode == 130


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="not run: needs POSIX signals")
def test_an_interrupt_before_the_command_began_is_answered(monkeypatch, capfd):
    start = supervise._start

    def interrupted(*arguments):
        process = start(*arguments)
        process.send_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(supervise, "_start", interrupted)
    assert supervised(COMMANDS, "waits", [os.devnull]) == 130
    assert capfd.readouterr().err == "interrupted; no file was changed\n"


def test_where_no_process_can_be_started_the_work_is_done_in_this_one(monkeypatch, capfd):
    def refused(*_, **__):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refused)
    assert supervised(COMMANDS, "ends", ["3"]) == 3
    assert "no process of its own" in capfd.readouterr().err


def test_crumbs_go_nowhere_unless_asked_for(capfd):
    crumbs.drop("stage", "x")
    assert capfd.readouterr() == ("", "")
    assert crumbs.last(b"@deployml stage a\nnoise\n@deployml stage b\n", "stage") == "b"
    assert crumbs.last(b"@deployml stage a\n@deployml stage \n", "stage") is None


def test_files_of_the_current_folder_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the json.py of the current folder ran')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert supervised(COMMANDS, "ends", ["3"]) == 3
