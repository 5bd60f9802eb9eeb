"""What a run leaves behind: the model's path and its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..runtime.report import Report

__all__ = ["Artifact", "FileNames"]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A produced model.

    Attributes:
        path: The ONNX file. Beside it lie the report and the unfused graph.
        report: What happened, as plain data.
    """

    path: Path
    report: Report

    @property
    def unfused(self) -> Path | None:
        """The same model before fusion, or None where none was written."""
        name = self.report.files.get("unfused")
        return None if name is None else self.path.parent / name


@dataclass(frozen=True, slots=True)
class FileNames:
    """The names of the files of one export; all derive from the model's name, so that a folder holds many.

    Attributes:
        model: Name of the model file, "X.onnx".
    """

    model: str

    @property
    def data(self) -> str:
        """Weights of both graphs, when they are not embedded."""
        return f"{self.model}.data"

    @property
    def unfused(self) -> str:
        """The graph before fusion."""
        return f"{self._stem}.unfused.onnx"

    @property
    def report(self) -> str:
        """The report as JSON."""
        return f"{self._stem}.report.json"

    @property
    def html(self) -> str:
        """The report as a page."""
        return f"{self._stem}.report.html"

    @property
    def bisect(self) -> str:
        """A minimal model that shows a wrong step, after a failed parity."""
        return f"{self._stem}.bisect.onnx"

    @property
    def bisect_inputs(self) -> str:
        """The inputs of that model."""
        return f"{self._stem}.bisect.npz"

    @property
    def lock(self) -> str:
        """What was approved: see :func:`deployml.lock`."""
        return f"{self._stem}.lock.json"

    @property
    def others(self) -> tuple[str, ...]:
        """All files besides the model that an export writes, or takes away where an earlier one left them."""
        return self.data, self.unfused, self.report, self.html, self.bisect, self.bisect_inputs

    @property
    def _stem(self) -> str:
        return self.model[: -len(".onnx")]
