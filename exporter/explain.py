"""``deployml.explain``: what became of each attention of a model, or what a rule does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir

from ..passes import registry
from ..passes.graph import census, op_name
from ..passes.pages import RulePage, page_of
from ..runtime.errors import InputError
from ..runtime.progress import Progress
from ..runtime.report import Report, from_json
from ..runtime.target import TargetName
from ..runtime.versions import installed
from .artifact import FileNames
from .foreign_origins import adopt_origins
from .fusing import fuse
from .onnx_file import lift_opset, open_file
from .options import Options

__all__ = ["explain"]


def explain(subject: str | Path, *, target: TargetName = "cpu", progress: bool | Progress = False) -> Report | RulePage:
    """Explain a model's attention sites, or a rule.

    Args:
        subject: An ONNX file, or the code or name of a rule.
        target: For a file without a report: what it would be fused for.
        progress: Show bars on stderr; or a :class:`Progress` to use.

    Returns:
        The report that lies beside the file, where it fits; else a report made by running the passes over a copy in
        memory. For a rule, its page.

    Raises:
        InputError: if it is neither a file nor a rule.
    """
    rule = registry.find(str(subject))
    if rule is not None:
        return page_of(rule)
    path = Path(subject).expanduser()
    if path.suffix.lower() != ".onnx" and not path.exists():
        raise InputError(
            f"'{subject}' is neither an ONNX file nor a rule",
            hint=f"rules: {', '.join(f'{r.code} ({r.name})' for r in registry.RULES)}",
        )
    bars = progress if isinstance(progress, Progress) else Progress(enabled=progress)
    with bars:
        model = open_file(path)
        return _report_beside(path, model) or _dry_run(path, model, target, bars)


def _report_beside(path: Path, model: ir.Model) -> Report | None:
    """The report of the run that made this file; None where there is none or the file has changed since."""
    place = path.with_name(FileNames(path.name).report)
    if not place.is_file():
        return None
    try:
        report = from_json(place.read_text(encoding="utf-8"), Report)
    except (ValueError, KeyError, OSError):
        return None
    nodes: dict[str, Any] = {str(node.name): op_name(node) for node in model.graph.all_nodes()}
    fits = report.model == path.name and report.census_after == census(model)
    return report if fits and all(nodes.get(site.name) == site.op for site in report.fused) else None


def _dry_run(path: Path, model: ir.Model, target: TargetName, progress: Progress) -> Report:
    options = Options(target=target, validate=False)
    adopt_origins(model)
    notes = lift_opset(model, None)
    resolved = options.resolve(opset=model.graph.opset_imports[""])
    fused = fuse(model, resolved, options, progress)
    return Report(
        command="explain",
        verdict="pass",
        model=path.name,
        source=path.name,
        target=target,
        versions=installed(),
        sites=fused.sites,
        rewrites=tuple(fused.journal.rewrites),
        declines=tuple(fused.journal.declines),
        passes=tuple(fused.journal.passes),
        census_before=fused.census_before,
        census_after=fused.census_after,
        warnings=(*notes, "no report fits this file: the passes were run on a copy in memory"),
        not_run={"validate": "explain writes nothing", "bench": "explain writes nothing"},
        stages=progress.stages,
    )
