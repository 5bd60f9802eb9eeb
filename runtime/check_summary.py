"""The terminal form of a lock and of a check: 80 columns, verdict first."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from .drift import CheckReport, Finding
from .lock import Lock
from .words import counted

__all__ = ["render_check", "render_lock"]

_WIDTH: Final = 80
_STYLES: Final = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "not-run": "yellow",
}
_SIGNS: Final = {"pass": "note", "fail": "FAIL", "inconclusive": "UNDECIDED", "not-run": "not run"}


def render_check(found: CheckReport, console: Console) -> None:
    """Print what a check found: every difference in a sentence, then what was compared."""
    head = Text(found.verdict.upper(), style=_STYLES[found.verdict]).append(f"  {found.model}", style="bold")
    _print(console, head.append(f"  checked against {found.lock}"))
    for finding in found.findings:
        _print(console, _line(finding), indent=2)
    if not found.findings:
        _print(console, Text("nothing differs"), indent=2)
    _print(console, Text("Compared: ", style="dim").append("; ".join(found.checked)), indent=2)
    for what, why in found.not_run.items():
        _print(console, Text(f"Not run: {what}: {why}", style="dim"), indent=2)


def render_lock(lock: Lock, console: Console) -> None:
    """Print what was locked, in a line or two."""
    _print(console, Text("LOCKED", style="bold green").append(f"  {lock.model}", style="bold"))
    sites = f"{lock.fused} of {len(lock.sites)} attentions fused, {counted(sum(lock.census.values()), 'node')}"
    kept = f"{counted(len(lock.inputs), 'input')}, {counted(len(lock.outputs), 'output')}"
    kept += ", weights by digest" if lock.weights else ""
    _print(console, Text(f"{sites}, {kept}"), indent=2)
    if lock.parity is None:
        _print(
            console,
            Text("without parity and latency: no report beside the model fits it", style="dim"),
            indent=2,
        )


def _line(finding: Finding) -> Text:
    line = Text(f"{_SIGNS[finding.verdict]} ", style=_STYLES[finding.verdict]).append(finding.text)
    return line.append(f" ({finding.source})") if finding.source else line


def _print(console: Console, text: Text, *, indent: int = 0) -> None:
    text.overflow = "fold"
    console.print(Padding(text, (0, 0, 0, indent)), width=min(_WIDTH, console.width), highlight=False)
