"""GitHub Actions: findings as annotations on the pull request, the whole check as the job's summary page."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Final

from ..drift import CheckReport, Finding
from ..files import append_text
from ..report import Verdict

__all__ = ["annotations", "append_summary", "summary"]

_LEVELS: Final[dict[Verdict, str]] = {
    "fail": "error",
    "inconclusive": "warning",
    "pass": "notice",
    "not-run": "notice",
}
_SIGNS: Final[dict[Verdict, str]] = {"pass": "✅", "fail": "❌", "inconclusive": "⚠️", "not-run": "➖"}


def annotations(report: CheckReport) -> str:
    """One workflow command a finding; print it to stdout or stderr of a step."""
    return "".join(f"{_command(report, finding)}\n" for finding in report.findings)


def summary(report: CheckReport) -> str:
    """The check as Markdown, for ``$GITHUB_STEP_SUMMARY``."""
    lines = [f"## {_SIGNS[report.verdict]} deployml check: {_text(report.model)}", ""]
    if report.findings:
        lines += ["| | Where | What |", "|---|---|---|"]
        lines += [f"| {_SIGNS[f.verdict]} | {_text(f.where)} | {_text(f.text)} |" for f in report.findings]
    else:
        lines.append(f"Nothing differs from {_text(report.lock)}.")
    lines += ["", f"Compared: {_text('; '.join(report.checked))}."]
    lines += [f"\nNot run: {_text(what)}: {_text(why)}." for what, why in report.not_run.items()]
    return "\n".join(lines) + "\n"


def append_summary(report: CheckReport, path: Path) -> None:
    """Append :func:`summary` to the file that the runner names; other steps write there too.

    Raises:
        InputError: if it cannot be written.
    """
    append_text(path, summary(report))


def _command(report: CheckReport, finding: Finding) -> str:
    properties = {"title": f"{report.model}: {finding.kind}"}
    file, _, line = (finding.source or "").rpartition(":")
    if file and line.isdecimal():
        properties = {"file": file, "line": line, **properties}
    given = ",".join(f"{name}={_property(text)}" for name, text in properties.items())
    return f"::{_LEVELS[finding.verdict]} {given}::{_data(finding.text)}"


def _data(text: str) -> str:
    """The escapes of the runner's own toolkit: a name must not begin a command of its own."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _text(text: str) -> str:
    """Text that Markdown and its HTML leave alone."""
    flat = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+!|~" else c for c in flat)
