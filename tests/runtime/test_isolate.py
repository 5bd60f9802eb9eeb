import math
import os
import signal
import time

import pytest

from deployml.runtime import versions
from deployml.runtime.errors import DeploymlBug, ToolchainError
from deployml.runtime.isolate import run_isolated


def test_result_and_arguments_travel():
    assert run_isolated(math.hypot, 3.0, 4.0, step="sum") == 5.0
    assert run_isolated(versions.installed, packages=("numpy",), step="versions")["numpy"]


def test_what_the_child_prints_stays_off_stdout(capfd):
    assert run_isolated(print, "noise", step="noise") is None
    assert capfd.readouterr().out == ""


def test_an_error_for_the_user_arrives_as_it_was():
    with pytest.raises(ToolchainError, match="no-such-package-xyz is needed to test") as caught:
        run_isolated(versions.require, "no-such-package-xyz", why="to test", step="check")
    assert "pip install" in caught.value.hint


def test_anything_else_is_a_bug_with_the_traceback():
    with pytest.raises(DeploymlBug, match=r"(?s)parity raised.*ValueError: math domain error"):
        run_isolated(math.sqrt, -1, step="parity")


def test_a_crash_names_the_step_and_the_signal():
    with pytest.raises(ToolchainError, match=r"validation crashed \(SIGABRT\)"):
        run_isolated(os.abort, step="validation")


def test_a_kill_reads_as_lack_of_memory():
    with pytest.raises(ToolchainError, match=r"validation ran out of memory \(ended by SIGKILL\)"):
        run_isolated(signal.raise_signal, signal.SIGKILL, step="validation")


def test_a_memory_limit_is_named():
    with pytest.raises(ToolchainError, match=r"validation ran out of memory of its limit of 512\.0 MiB"):
        run_isolated(bytearray, 4 << 30, step="validation", memory_limit=512 << 20)


def test_a_hang_is_ended():
    start = time.monotonic()
    with pytest.raises(ToolchainError, match=r"validation took longer than 0\.5 seconds"):
        run_isolated(time.sleep, 60, step="validation", timeout=0.5)
    assert time.monotonic() - start < 20


def test_an_exit_without_a_result():
    with pytest.raises(ToolchainError, match="validation ended with status 7"):
        run_isolated(os._exit, 7, step="validation")


def test_a_function_that_has_no_name_elsewhere_is_refused():
    with pytest.raises(DeploymlBug, match="by name"):
        run_isolated(lambda: 1, step="x")


def test_files_of_the_current_folder_are_not_run(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the json.py of the current folder ran')\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert run_isolated(math.hypot, 3.0, 4.0, step="sum") == 5.0
