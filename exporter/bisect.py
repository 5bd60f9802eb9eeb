"""After a failed parity: the first pass, rule and node that made the results wrong, and a minimal model of it."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from ..passes import canonical, registry
from ..passes.steps import Step
from ..runtime.attempt import Runner, in_one_line
from ..runtime.bisect import first_bad
from ..runtime.feeds import Case
from ..runtime.parity import agrees
from ..runtime.report import Culprit, ParityReport
from ..runtime.session import Optimize, open_session
from ..runtime.tensors import session_runner
from .against import Subject
from .artifact import FileNames
from .fusing import Fused, Start
from .measuring import TOLERANCE, Graph, Reference
from .minimal import Parting, in_memory, part
from .onnx_file import open_file
from .source_map import MODULE_KEY, SOURCE_KEY
from .writing import weight_bytes

__all__ = ["Evidence", "compare_files", "failing_case", "find_culprit"]

#: Models with more bytes of weights are not bisected: each trial holds them once more.
_LIMIT: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Evidence:
    """The culprit and, where it could be cut out, the minimal model with its inputs."""

    culprit: Culprit
    parting: Parting | None = None

    def write(self, names: FileNames, write: Callable[[str, bytes], object]) -> Culprit:
        """Write the minimal model and its inputs with ``write(name, data)``. Returns the culprit that names them."""
        if self.parting is None:
            return self.culprit
        buffer = io.BytesIO()
        np.savez(buffer, **dict(sorted(self.parting.feeds.items())))  # type: ignore[arg-type]
        write(names.bisect_inputs, buffer.getvalue())
        write(names.bisect, ir.serde.serialize_model(self.parting.model).SerializeToString(deterministic=True))
        return replace(self.culprit, model=names.bisect, inputs=names.bisect_inputs)


def failing_case(parity: ParityReport, cases: Sequence[Case]) -> Case | None:
    """The smallest case that failed; None where only the grid as a whole did."""
    failed = {c.case for c in parity.comparisons if c.verdict == "fail"}
    found = [case for case in cases if case.name in failed]
    return min(found, key=lambda case: sum(a.size for a in case.feeds.values()), default=None)


def find_culprit(fused: Fused, graph: Graph, reference: Reference, case: Case) -> Evidence:
    """Repeat the passes and find the first step after which ``case`` fails.

    A search that itself fails does not take the verdict with it: the culprit then says why there is none.

    Args:
        fused: The run that made the wrong graph.
        graph: The written graph; says on what it runs.
        reference: What it should compute.
        case: Inputs that fail.
    """
    try:
        return _searched(fused, graph, reference, case)
    except Exception as error:  # of whatever class: wrong graphs are built, loaded and run here
        return _given_up(case, error)


def _searched(fused: Fused, graph: Graph, reference: Reference, case: Case) -> Evidence:
    if weight_bytes(fused.unfused) > _LIMIT:
        note = f"not bisected: it holds more than {_LIMIT >> 30} GiB of weights"
        return Evidence(Culprit(stage="not bisected", case=case.name, note=note))
    trial = _Trial(graph, _once(reference.run, case), reference.same_dtype, case)
    if trial.is_bad(fused.unfused):
        plain = replace(trial, optimize="none")
        stage = "onnxruntime" if not plain.is_bad(fused.unfused) else "translation"
        return Evidence(Culprit(stage=stage, case=case.name))
    steps = _steps(fused.start)
    if not trial.is_bad(_replay(fused.start, [len(steps)])[len(steps)]):
        note = "the passes did other things when they ran again"
        return Evidence(Culprit(stage="not bisected", case=case.name, note=note))
    number = first_bad(len(steps), lambda wanted: _replay(fused.start, wanted), trial.is_bad)
    states = _replay(fused.start, [n for n in (number - 1, number) if n])
    before = states.get(number - 1, fused.unfused)
    return _evidence(steps[number - 1], before, states[number], case)


def compare_files(subject: Subject, reference: Reference, case: Case) -> Evidence | None:
    """Without the run that made a file: the first node at which it parts from its unfused sibling.

    Args:
        subject: The file.
        reference: What it should compute.
        case: Inputs that fail.

    Returns:
        None where no sibling lies beside the file.
    """
    path = subject.graph.path
    sibling = path.with_name(FileNames(path.name).unfused)
    if path.suffix != ".onnx" or not sibling.is_file():
        return None
    before = open_file(sibling)
    if weight_bytes(before) > _LIMIT:
        return None
    try:
        return _parted_files(subject, before, reference, case)
    except Exception as error:  # as above
        return _given_up(case, error)


def _given_up(case: Case, error: Exception) -> Evidence:
    note = f"the search for it ended: {in_one_line(error)}"
    return Evidence(Culprit(stage="not bisected", case=case.name, note=note))


def _parted_files(subject: Subject, before: ir.Model, reference: Reference, case: Case) -> Evidence:
    trial = _Trial(subject.graph, _once(reference.run, case), reference.same_dtype, case)
    if trial.is_bad(before):
        stage = "sibling" if replace(trial, optimize="none").is_bad(before) else "onnxruntime"
        return Evidence(Culprit(stage=stage, case=case.name))
    parting, why = _parted(before, subject.model, case)
    if why is not None:
        return Evidence(Culprit(stage="not bisected", case=case.name, note=why))
    if parting is None:
        return Evidence(Culprit(stage="onnxruntime", case=case.name))
    node = parting.node
    rule = registry.find(str(node.name).rpartition(".")[0])  # rules name their nodes after themselves
    found = Culprit(
        stage="node",
        rule=None if rule is None else rule.code,
        at=node.name,
        module_path=node.metadata_props.get(MODULE_KEY),
        source=node.metadata_props.get(SOURCE_KEY),
        case=case.name,
        output=parting.output,
        error=parting.error,
    )
    return Evidence(found, parting)


def _evidence(step: Step, before: ir.Model, after: ir.Model, case: Case) -> Evidence:
    _name_alike(after, step)
    parting, why = _parted(before, after, case)
    made = {str(n.name): n for n in after.graph.all_nodes()}
    node = next((made[n] for n in step.nodes if n in made), parting.node if parting else None)
    culprit = Culprit(
        stage=step.stage,
        rule=step.rule,
        at=step.at or (None if node is None else node.name),
        module_path=None if node is None else node.metadata_props.get(MODULE_KEY),
        source=None if node is None else node.metadata_props.get(SOURCE_KEY),
        case=case.name,
        output=None if parting is None else parting.output,
        error=None if parting is None else parting.error,
        note=None if parting is not None else why or "it shows only where onnxruntime optimises the graph",
    )
    return Evidence(culprit, parting)


def _parted(before: ir.Model, after: ir.Model, case: Case) -> tuple[Parting | None, str | None]:
    """Where two graphs part, or why they could not be compared value by value: the wrong one need not even run."""
    try:
        return part(before, after, case.feeds, TOLERANCE), None
    except Exception as error:  # of whatever class: a wrong graph may fail to load, to run, or to be cut
        return None, f"no smaller model shows it: the graphs do not run value by value ({in_one_line(error)})"


def _name_alike(after: ir.Model, step: Step) -> None:
    """Give the values that took another's place its name, so that both graphs call them the same."""
    values = {str(o.name): o for node in after.graph for o in node.outputs}
    for old, new in step.values:
        if new in values and old not in values:
            values[new].name = old


@dataclass(frozen=True, slots=True)
class _Trial:
    """How a state of the graph is judged."""

    graph: Graph
    reference: Runner
    same_dtype: bool
    case: Case
    optimize: Optimize = "all"

    def is_bad(self, model: ir.Model) -> bool:
        """Whether the case fails on a model; one that does not load is bad too."""
        try:
            session = open_session(
                ir.serde.serialize_model(in_memory(model)).SerializeToString(),
                self.graph.target,
                libraries=self.graph.libraries,
                allow_cpu_fallback=self.graph.allow_cpu_fallback,
                optimize=self.optimize,
            )
        except Exception:  # of whatever class: the graph is at fault, and that is what is looked for
            return True
        return not agrees(
            session_runner(session),
            self.reference,
            self.case,
            output_names=[o.name for o in session.get_outputs()],
            tolerance=TOLERANCE,
            same_dtype=self.same_dtype,
        )


def _once(run: Runner, case: Case) -> Runner:
    """The reference's outputs on the one case, computed once."""
    outputs = run(case.feeds)
    return lambda feeds: outputs


def _steps(start: Start) -> list[Step]:
    steps: list[Step] = []
    start.run(start.model.clone(), watch=lambda step, _: steps.append(step))
    return steps


def _replay(start: Start, wanted: Collection[int]) -> Mapping[int, ir.Model]:
    """Copies of the graph after the steps with these numbers, canonical attention as plain operators."""
    found: dict[int, ir.Model] = {}

    def watch(step: Step, model: ir.Model) -> None:
        if step.number not in wanted:
            return
        copy = model.clone()
        canonical.expand_all(copy)
        copy.graph.sort()
        found[step.number] = copy

    start.run(start.model.clone(), watch=watch)
    return found
