"""The report that lies beside a model, where it is still the report of that very file."""

from __future__ import annotations

from pathlib import Path

from ..runtime.report import Report, from_json
from .artifact import FileNames

__all__ = ["report_beside"]


def report_beside(path: Path) -> Report | None:
    """The report of the run that made this file; None where there is none, or file or weights changed since."""
    place = path.with_name(FileNames(path.name).report)
    if not place.is_file():
        return None
    try:
        report = from_json(place.read_text(encoding="utf-8"), Report)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None
    return report if report.model == path.name and report.is_of(path) else None
