"""The report as a page, which lies beside the model unless the user does without."""

from __future__ import annotations

from ..passes.picture import before_and_after
from ..runtime.files import Staging
from ..runtime.html import html_report
from ..runtime.report import Culprit, Report
from .artifact import FileNames
from .fusing import Fused

__all__ = ["files", "write"]


def files(names: FileNames, *, html: bool, culprit: Culprit | None) -> dict[str, str]:
    """Role to file name of what lies beside the model, its report and its sibling."""
    found = {"html": names.html} if html else {}
    if culprit is not None and culprit.model is not None:
        found |= {"bisect": names.bisect, "bisect inputs": names.bisect_inputs}
    return found


def write(staging: Staging, names: FileNames, report: Report, fused: Fused, *, html: bool) -> None:
    """Render the page into the staging folder; what an earlier export left and this one does not make goes away."""
    if report.culprit is None or report.culprit.model is None:
        staging.remove(names.bisect)
        staging.remove(names.bisect_inputs)
    if not html:
        staging.remove(names.html)
        return
    before, after = before_and_after(fused.unfused, fused.model, fused.sites)
    staging.write(names.html, html_report(report, before=before, after=after))
