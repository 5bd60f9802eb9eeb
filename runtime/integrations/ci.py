"""Telling a CI server what a check found, in the server's own forms."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ..drift import CheckReport
from ..files import atomic_write, check_writable
from .github import annotations, append_summary
from .junit import to_junit

__all__ = ["check_places", "tell"]


def check_places(*, junit: Path | None = None, github: bool = False) -> None:
    """See to it, before a check begins, that :func:`tell` can write where it will be asked to.

    Raises:
        InputError: if a file cannot be written.
    """
    if junit is not None:
        check_writable(junit)
    page = os.environ.get("GITHUB_STEP_SUMMARY") if github else None
    if page:
        check_writable(page)


def tell(report: CheckReport, *, junit: Path | None = None, github: bool = False) -> None:
    """Write JUnit XML, and talk to GitHub Actions.

    Args:
        report: What was found.
        junit: Where to write JUnit XML.
        github: Print annotations on stderr, where the runner reads them too and ``--json`` does not write, and
            append to the job's summary page where the runner names one.

    Raises:
        InputError: if the file cannot be written.
    """
    if junit is not None:
        atomic_write(junit, to_junit(report))
    if github:
        print(annotations(report), end="", file=sys.stderr)
        page = os.environ.get("GITHUB_STEP_SUMMARY")
        if page:
            append_summary(report, Path(page))
