"""The report that lies beside a model, where it is still the report of that very graph."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..passes.graph import census, op_name
from ..runtime.report import Report, from_json
from .artifact import FileNames

__all__ = ["report_beside"]


def report_beside(path: Path, model: ir.Model) -> Report | None:
    """The report of the run that made this file; None where there is none or the graph has changed since."""
    place = path.with_name(FileNames(path.name).report)
    if not place.is_file():
        return None
    try:
        report = from_json(place.read_text(encoding="utf-8"), Report)
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return None
    nodes = {str(node.name): op_name(node) for node in model.graph.all_nodes()}
    fits = report.model == path.name and report.census_after == census(model)
    return report if fits and all(nodes.get(site.name) == site.op for site in report.fused) else None
