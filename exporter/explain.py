"""``deployml.explain``: what became of each attention of a model, or what a rule does."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from ..passes import registry
from ..passes.pages import RulePage, page_of
from ..runtime.errors import InputError
from ..runtime.progress import Progress
from ..runtime.report import Report
from ..runtime.target import TargetName
from ..runtime.versions import installed
from .beside import report_beside
from .foreign_origins import adopt_origins
from .fusing import fuse
from .onnx_file import check_standard, lift_opset, open_file
from .options import Options

__all__ = ["dry_run", "explain"]


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
    with Progress.of(progress) as bars:
        model = open_file(path)
        return report_beside(path) or dry_run(path, model, target, bars)


def dry_run(path: Path, model: ir.Model, target: TargetName, progress: Progress) -> Report:
    """What the passes would make of a model; nothing is written, ``model`` is consumed."""
    options = Options(target=target, validate=False)
    adopt_origins(model)
    notes = lift_opset(model, None)
    check_standard(model, path.name)
    resolved = options.resolve(opset=model.graph.opset_imports[""])
    fused = fuse(model, resolved, options, progress)
    return Report(
        command="explain",
        verdict="not-run",
        model=path.name,
        source=path.name,
        target=target,
        versions=installed(),
        sites=fused.sites,
        rewrites=tuple(fused.journal.rewrites),
        declines=tuple(fused.journal.worth_telling()),
        passes=tuple(fused.journal.passes),
        census_before=fused.census_before,
        census_after=fused.census_after,
        warnings=(*notes, "no report fits this file: the passes were run on a copy in memory"),
        not_run={"validate": "explain writes nothing", "bench": "explain writes nothing"},
        stages=progress.stages,
    )
