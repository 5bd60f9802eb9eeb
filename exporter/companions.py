"""The report as a page, which lies beside the model unless the user does without."""

from __future__ import annotations

from ..passes.picture import before_and_after
from ..runtime.files import Staging
from ..runtime.html import html_report
from ..runtime.report import Report
from .artifact import FileNames
from .fusing import Fused

__all__ = ["files", "write"]


def files(names: FileNames, *, html: bool) -> dict[str, str]:
    """Role to file name of what :func:`write` makes."""
    return {"html": names.html} if html else {}


def write(staging: Staging, names: FileNames, report: Report, fused: Fused, *, html: bool) -> None:
    """Render the page into the staging folder; without it, the page of an earlier export goes away."""
    if not html:
        staging.remove(names.html)
        return
    before, after = before_and_after(fused.unfused, fused.model, fused.sites)
    staging.write(names.html, html_report(report, before=before, after=after))
