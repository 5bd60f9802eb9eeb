"""Files that are made from the report alone and lie beside the model.

One line a kind: the role in :attr:`Report.files`, how the file is called, and what renders it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..runtime.files import Staging
from ..runtime.report import Report
from .artifact import FileNames

__all__ = ["COMPANIONS", "files", "write"]

#: (role, name of the file, report to text)
COMPANIONS: Final[tuple[tuple[str, Callable[[FileNames], str], Callable[[Report], str]], ...]] = ()


def files(names: FileNames) -> dict[str, str]:
    """Role to file name of every companion."""
    return {role: name(names) for role, name, _ in COMPANIONS}


def write(staging: Staging, names: FileNames, report: Report) -> None:
    """Render every companion of ``report`` into the staging folder."""
    for _, name, render in COMPANIONS:
        staging.write(name(names), render(report))
