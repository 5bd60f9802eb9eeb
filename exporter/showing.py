"""What the command line prints for people, for everything that a command returns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.text import Text

from ..passes.pages import RulePage
from ..runtime.check_summary import render_check, render_lock
from ..runtime.drift import CheckReport
from ..runtime.lock import Lock
from ..runtime.report import Report
from ..runtime.summary import render
from .doctor import Diagnosis
from .kernels import Kernels, KernelsTest
from .package import Package

__all__ = ["show"]

_WIDTH = 80


def show(value: Any, console: Console | None = None) -> None:
    """Print a report, a rule's page, a diagnosis or the list of kernels on stdout, 80 columns wide."""
    out = console or Console()
    match value:
        case Report():
            render(value, out)
        case CheckReport():
            render_check(value, out)
        case Lock():
            render_lock(value, out)
        case RulePage():
            _show_rule(value, out)
        case Diagnosis():
            _show_diagnosis(value, out)
        case Kernels():
            _show_kernels(value, out)
        case KernelsTest():
            _show_kernels_test(value, out)
        case Package():
            _show_package(value, out)
        case _:
            raise TypeError(f"nothing shows a {type(value).__name__}")


def _show_rule(page: RulePage, out: Console) -> None:
    _line(out, f"{page.code}  {page.name}", style="bold")
    _line(out, f"{page.status} since {page.since}, safety: {page.safety}, emits: {', '.join(page.emits) or '-'}")
    _line(out, f"\n{page.summary}")
    for title, text in page.sections.items():
        _line(out, f"\n{title}", style="bold")
        out.print(Markdown(text), width=min(_WIDTH, out.width))


def _show_diagnosis(found: Diagnosis, out: Console) -> None:
    for title, facts in (
        ("Versions", found.versions),
        ("Targets", found.targets),
        ("CUDA", found.cuda),
        ("Op libraries", found.libraries),
        ("Room", found.room),
        ("Nodes of the model", found.nodes),
    ):
        if not facts:
            continue
        _line(out, title, style="bold")
        width = max((len(name) for name in facts), default=0)
        for name, said in facts.items():
            _line(out, f"  {name:<{width}}  {said}")
    if found.probed:
        _line(out, "Attention operators of the installed onnxruntime", style="bold")
    for one in found.probed:
        said = "works" if one.works else f"does not work ({one.detail})"
        differs = "" if one.claimed == one.works else f" - {one.outcome}"
        _line(out, f"  {one.op.removeprefix('com.microsoft::')} {one.feature}: {said}{differs}")
    if found.remarks:
        _line(out, "Remarks", style="bold")
    for remark in found.remarks:
        _line(out, f"  {remark.what}\n    -> {remark.hint}")
    _line(out, "Problems", style="bold")
    for problem in found.problems:
        _line(out, f"  {problem.what}\n    -> {problem.hint}", style="red")
    if not found.problems:
        _line(out, "  none known")


def _show_kernels(found: Kernels, out: Console) -> None:
    _line(out, f"operators of the domain '{found.domain}'", style="bold")
    for backend, path in found.libraries.items():
        note = "" if path is None or backend == "cpu" else " (compiled, not run)"
        out.print(f"  {backend:<5} {path or 'not built'}{note}", markup=False, highlight=False, soft_wrap=True)


def _show_kernels_test(found: KernelsTest, out: Console) -> None:
    for backend, test in found.backends.items():
        cases = ", ".join(f"{count} cases of {operator}" for operator, count in test.operators.items())
        said = test.reason or f"{cases}; the worst error is {test.worst:.0%} of its bound"
        _line(out, f"  {backend:<5} {test.verdict}: {said}", style="red" if test.verdict == "fail" else "")
        for name in test.failed:
            _line(out, f"        {name}")


def _show_package(made: Package, out: Console) -> None:
    _line(out, f"{made.format} repository: model '{made.name}'", style="bold")
    for file in made.files:
        _line(out, f"  {made.folder}/{file}")
    for note in made.notes:
        _line(out, f"  note: {note}")


def _line(out: Console, text: str, *, style: str = "") -> None:
    out.print(Text(text, style=style, overflow="fold"), width=min(_WIDTH, out.width), highlight=False)
