import io
import subprocess
import sys
import time

import pytest
from rich.console import Console

from deployml.runtime.memory import available_memory, free_disk, human_bytes
from deployml.runtime.progress import Progress


def test_peak_follows_an_allocation_and_can_start_anew():
    """In a process of its own: the peak of a test run is far above what one test allocates."""
    program = """
import numpy as np
from deployml.runtime.memory import current_rss, peak_rss, reset_peak_rss
before = peak_rss()
block = np.ones(160 << 20, np.uint8)
assert peak_rss() >= current_rss() >= 160 << 20
assert peak_rss() >= before + (100 << 20)
high = peak_rss()
del block
if reset_peak_rss():
    assert peak_rss() < high - (100 << 20), (peak_rss(), high)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_machine(tmp_path):
    assert available_memory() > 0
    assert free_disk(tmp_path / "not" / "there" / "yet") > 0


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 30, "3.0 GiB"), (5 << 40, "5.0 TiB")]
)
def test_bytes_for_people(count, text):
    assert human_bytes(count) == text


def test_stages_are_recorded_also_when_they_raise():
    progress = Progress(enabled=False)
    with progress.stage("load"):
        time.sleep(0.01)
    with pytest.raises(RuntimeError), progress.stage("fuse") as stage:
        stage.total(3)
        stage.advance(text="layer 0")
        raise RuntimeError
    assert [s.name for s in progress.stages] == ["load", "fuse"]
    assert progress.stages[0].seconds >= 0.01
    assert progress.stages[0].peak_rss > 0


@pytest.mark.parametrize(("terminal", "enabled"), [(False, True), (True, False)])
def test_silent_without_a_terminal_or_when_switched_off(terminal, enabled):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal)
    with Progress(enabled=enabled, console=console) as progress, progress.stage("capture"):
        pass
    assert out.getvalue() == ""


def test_a_terminal_sees_the_stage():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with Progress(console=console) as progress, progress.stage("capture") as stage:
        stage.total(2)
        stage.advance(text="layer 1")
        time.sleep(0.3)
    assert "capture" in out.getvalue()
