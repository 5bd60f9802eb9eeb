"""A pytest fixture for people whose CI is pytest: ``deployml_check(model)`` holds a model against its lock.

pytest finds it where deployml is installed (entry point ``pytest11``); elsewhere, and with plug-ins switched off,
``pytest_plugins = ["deployml.runtime.integrations.pytest_plugin"]`` in ``conftest.py`` does the same. Nothing but
pytest is imported before a test asks for the fixture.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ..drift import CheckReport

__all__ = ["deployml_check"]


@pytest.fixture
def deployml_check() -> Callable[..., CheckReport]:
    """A function that fails the test with a sentence for each difference, and returns the report otherwise.

    Its arguments are the model's path and, by name, ``lock``, ``against``, ``max_slowdown``, ``seconds`` and
    ``options`` (further ones of ``deployml check``, as on its command line). A latency that cannot be decided skips
    the test with the numbers. The check runs in a process of its own: a crash of onnxruntime fails one test only.
    """
    return _check


def _check(
    model: str | Path,
    *,
    lock: str | Path | None = None,
    against: str | Path | None = None,
    max_slowdown: float | None = None,
    seconds: float | None = None,
    options: Sequence[str] = (),
) -> CheckReport:
    from ..drift import CheckReport
    from ..report import from_json

    given = {"--lock": lock, "--against": against, "--max-slowdown": max_slowdown, "--seconds": seconds}
    arguments = [str(part) for name, value in given.items() if value is not None for part in (name, value)]
    command = [sys.executable, "-m", "deployml.cli", "check", str(model), *arguments, *options, "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode not in (0, 1, 3):
        pytest.fail(f"deployml check {model}: {_complaint(ran)}", pytrace=False)
    report = from_json(ran.stdout, CheckReport)
    said = "\n".join(f"  {f.text}" for f in report.findings if f.verdict != "pass")
    if report.verdict == "fail":
        pytest.fail(f"{report.model} differs from {report.lock}:\n{said}", pytrace=False)
    if report.verdict == "inconclusive":
        pytest.skip(f"not decided: {said.strip()}")
    return report


def _complaint(ran: subprocess.CompletedProcess[str]) -> str:
    """The message of the JSON error object, or whatever a process that crashed left."""
    try:
        error = json.loads(ran.stdout)["error"]
        return f"{error['message']} -> {error['hint']}"
    except (ValueError, KeyError, TypeError):
        return f"exit status {ran.returncode}: {ran.stderr.strip()[-500:]}"
