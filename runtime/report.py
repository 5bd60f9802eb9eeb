"""The values a run reports, as frozen dataclasses with a versioned JSON form.

One object, :class:`Report`, is what the API returns, what ``--json`` prints and what is written beside the model.
Everything in it is plain data (str, int, float, bool, None, tuples, dicts): no paths of the machine that made
it, no timestamps, so that the same input gives the same bytes (wall times live under ``stages`` and
``latency`` only and are the one part that differs between runs).
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from .files import sha256_of

__all__ = [
    "SCHEMA_VERSION",
    "Comparison",
    "Contender",
    "Culprit",
    "Decline",
    "LatencyReport",
    "NodeTime",
    "OpTime",
    "ParityReport",
    "PassRecord",
    "Profile",
    "Ratio",
    "Report",
    "Rewrite",
    "Site",
    "Stage",
    "SweepPoint",
    "Verdict",
    "from_json",
    "to_json",
]

#: Version of the JSON form. The first number changes when a field is removed or changes its meaning.
SCHEMA_VERSION = "1.1"

Verdict = Literal["pass", "fail", "inconclusive", "not-run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One attention of the model and what became of it.

    Attributes:
        index: Position among the model's sites, in topological order, from 0.
        name: Name of the graph node that now computes it (fused) or of its softmax (declined).
        status: "fused" or "declined".
        op: Qualified name of the node it became ("com.microsoft::MultiHeadAttention"), None when declined.
        kernel: Kernel class expected on the target ("flash", "naive", "own", "unknown"), None when declined.
        rule: Code of the lowering rule that decided, e.g. "ATT101".
        reason: Stable reason code of a decline ("needs-custom-op", "mask-not-proven", ...), None when fused.
        detail: One sentence: what was expected, what was found.
        nearest: The lowering that came closest, None when fused.
        module_path: Dotted path of the torch module that called it ("encoder.layer.3.attention.self").
        source: "relative/file.py:123" of the user's code that called it.
        origin: How it was found: "sdpa" (captured call), "softmax" (recognised), "op" (already one node),
            "recurrence" (a captured linear attention).
        facts: The typed facts: heads, kv_heads, head_dim, value_dim, scale, causal, window, mask, bias, ...
        error: Largest error of the fused form against float64, relative to the largest output (proof).
        error_unfused: The same for the form it replaced.
        granted: Tolerance the proof granted.
        assumptions: Named assumptions under which the two forms are equal ("fully-masked-rows").
    """

    index: int
    name: str
    status: Literal["fused", "declined"]
    op: str | None = None
    kernel: str | None = None
    rule: str | None = None
    reason: str | None = None
    detail: str | None = None
    nearest: str | None = None
    module_path: str | None = None
    source: str | None = None
    origin: Literal["sdpa", "softmax", "op", "recurrence"] = "sdpa"
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: float | None = None
    error_unfused: float | None = None
    granted: float | None = None
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """A rule that was applied at one place: ``at`` names the node; errors are those of the proof."""

    rule: str
    at: str
    emits: str
    error: float | None = None
    error_unfused: float | None = None
    granted: float | None = None
    proof: Literal["executed", "cached", "exact", "not-run"] = "executed"
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decline:
    """A rule that looked at a node and said no. ``rolled_back`` marks one whose proof failed."""

    rule: str
    at: str
    reason: str
    detail: str
    rolled_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRecord:
    """One pass of the pipeline: how long, how many rewrites, node counts around it, why it did not run."""

    name: str
    seconds: float
    rewrites: int
    nodes_before: int
    nodes_after: int
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Wall time (seconds) and peak resident memory (bytes) of one stage of the run."""

    name: str
    seconds: float
    peak_rss: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One output of one parity case.

    Attributes:
        case: Name of the case, e.g. "batch=3 sequence=7 mask=left".
        output: Name of the output.
        shape: Its shape in this case.
        needed: The tolerance that would have been needed, relative to the largest reference value.
        granted: The tolerance that was granted.
        basis: Why that much: "float32 against eager", "8x the unfused error", ...
        max_abs: Largest absolute difference.
        worst: Index of it.
        cosine: Cosine of the flattened tensors; None for integer outputs.
        top1: Share of rows with the same arg max, for logits-like outputs; None elsewhere.
        nan_match: Whether NaN and infinities are in the same places.
        verdict: "pass", "fail" or "not-run".
        note: A sentence on a failure or on why it was not run.
    """

    case: str
    output: str
    shape: tuple[int, ...]
    needed: float | None
    granted: float
    basis: str
    max_abs: float | None = None
    worst: tuple[int, ...] = ()
    cosine: float | None = None
    top1: float | None = None
    nan_match: bool = True
    verdict: Verdict = "pass"
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Parity of a graph against its reference over a grid of cases.

    ``nodes`` counts the graph's nodes by the provider that ran them.
    """

    verdict: Verdict
    reference: str
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    nodes: Mapping[str, int] = field(default_factory=dict)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that came closest to (or furthest over) its tolerance."""
        judged = [c for c in self.comparisons if c.needed is not None or c.verdict == "fail"]
        return max(judged, key=_severity, default=None)


def _severity(found: Comparison) -> tuple[bool, float]:
    """A failure first, then by how much of the tolerance was used; a failure without a number is the worst."""
    if found.needed is None or found.granted <= 0:
        return found.verdict == "fail", math.inf
    return found.verdict == "fail", found.needed / found.granted


#: What is said of a culprit that is no pass.
_STAGES: Final[Mapping[str, str]] = {
    "translation": "the graph is wrong before any pass ran: the translation from the source is at fault",
    "onnxruntime": "the graph before any pass is right, and wrong once onnxruntime optimises it",
    "sibling": "the unfused graph beside it differs from this source too: another source, or a wrong translation",
    "node": "it first differs from the unfused graph beside it",
    "not bisected": "the first wrong step was not found",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """The first step of a run after which results were wrong.

    Attributes:
        stage: "translation" (the graph before any pass is wrong already), "onnxruntime" (that graph is right unless
            onnxruntime optimises it), "sibling" (the unfused graph that lies beside a file differs too), "node" (the
            first node that differs from it, whatever made that), "not bisected", or the name of the pass.
        rule: Code of the rule, None for a pass over the whole graph.
        at: Name of the node that the rule was applied at, or of the first node with a wrong value.
        module_path: Dotted path of the torch module that the node came from.
        source: "relative/file.py:123" of the user's code.
        case: The parity case that showed it.
        output: The value that differs.
        error: How much, relative to its largest value.
        model: File name of a minimal model that shows it, with one output before and one after the step; or None.
        inputs: File name of its inputs (.npz).
        note: A sentence, where something could not be done.
    """

    stage: str
    case: str
    rule: str | None = None
    at: str | None = None
    module_path: str | None = None
    source: str | None = None
    output: str | None = None
    error: float | None = None
    model: str | None = None
    inputs: str | None = None
    note: str | None = None

    def sentence(self) -> str:
        """What went wrong where, and what to look at."""
        said = _STAGES.get(self.stage, f"the first wrong step is the pass {self.stage}")
        said += f", rule {self.rule}" if self.rule else ""
        place = self.module_path or self.source
        said += (f", at node '{self.at}'" if self.at else "") + (f" ({place})" if place else "")
        if self.output is not None and self.error is not None:
            said += f": '{self.output}' changes by {self.error:.1e} at {self.case}"
        said += f"; {self.model} with {self.inputs} shows it" if self.model else ""
        said += f"; without it: --disable-fusion {self.rule}" if self.rule else ""
        return said + (f"; {self.note}" if self.note else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """Times of one contender, milliseconds a run, and the bytes it takes to load and run it where that was measured.

    ``nodes`` counts the graph's nodes by the provider that runs them, for a contender that onnxruntime runs.
    """

    name: str
    median_ms: float
    p90_ms: float
    p99_ms: float
    runs: int
    provider: str
    note: str | None = None
    peak_memory: int | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    """Time of all nodes of one operator, milliseconds a run; ``flops`` is None where shapes do not tell."""

    op: str
    nodes: int
    ms: float
    flops: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTime:
    """Time of one node, milliseconds a run, its operations, and the bytes it reads and writes."""

    name: str
    op: str
    ms: float
    flops: int | None = None
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Where the time of the graph under test goes, as onnxruntime's profiler counts it.

    Attributes:
        total_ms: Sum over the nodes, of one run; the profiler itself makes it longer than the time measured without.
        flops: Operations of all nodes for which they are known.
        complete: Whether that is all of them.
        peak_flops: Operations a second that a product reaches here: a large one, or the best of the graph.
        peak_bytes: Bytes a second that a large sum reaches here.
        ops: By operator, the slowest first.
        nodes: The attention sites and the slowest nodes, in execution order.
    """

    total_ms: float
    flops: int | None = None
    complete: bool = False
    peak_flops: float | None = None
    peak_bytes: float | None = None
    ops: tuple[OpTime, ...] = ()
    nodes: tuple[NodeTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """``slower`` / ``faster`` as the median of paired ratios with a 95 % confidence interval.

    A value of 1.5 says that ``of`` takes 1.5 times as long as ``over``: ``over`` is 1.5x faster.
    """

    of: str
    over: str
    value: float
    low: float
    high: float
    pairs: int
    verdict: Verdict = "pass"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One size of a sweep: median milliseconds by contender, and the ratios over the base."""

    sizes: Mapping[str, int]
    medians: Mapping[str, float]
    ratios: tuple[Ratio, ...] = ()
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """One interleaved run of all contenders on the same tensors and threads."""

    verdict: Verdict
    shapes: Mapping[str, tuple[int, ...]]
    threads: int
    contenders: tuple[Contender, ...] = ()
    ratios: tuple[Ratio, ...] = ()
    flops: int | None = None
    peak_flops: float | None = None
    mfu: float | None = None
    notes: tuple[str, ...] = ()
    profile: Profile | None = None
    sweep: tuple[SweepPoint, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened to a model, from source to file.

    Attributes:
        command: "export", "optimize", "validate" or "bench".
        verdict: "fail" when any verdict inside failed, else "inconclusive" or "pass"; "not-run" where neither parity
            nor latency was asked for.
        model: Name of the produced model file (no folder).
        source: What it was made from, as a name without a folder.
        target: "cpu", "cuda", "rocm" or "portable".
        versions: Package name to version.
        sites: Every attention of the model.
        rewrites: Every rewrite that was applied.
        declines: Every rewrite that was considered and not applied.
        passes: The passes in the order they ran.
        census_before: Qualified op name to count, before fusion.
        census_after: The same after.
        parity: None when it was not run; ``not_run`` says why, and why a reference ran none of its cases.
        latency: None when it was not run; ``not_run`` says why.
        culprit: After a failed parity, the first wrong step of the run, where it was found.
        assumptions: Named assumptions the graph rests on, with a sentence each.
        warnings: What the user should know and did not ask.
        not_run: Check name to the reason it was not run.
        files: Role ("model", "data", "unfused", "report", "html") to file name.
        digests: SHA-256 of the files with the roles "model" and "data", by role: whose report this is.
        libraries: Op libraries the model needs ("deployml" domain), by file name.
        stages: Wall time and memory by stage.
        schema: Version of this form.
    """

    command: str
    verdict: Verdict
    model: str
    source: str
    target: str
    versions: Mapping[str, str]
    sites: tuple[Site, ...] = ()
    rewrites: tuple[Rewrite, ...] = ()
    declines: tuple[Decline, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    census_before: Mapping[str, int] = field(default_factory=dict)
    census_after: Mapping[str, int] = field(default_factory=dict)
    parity: ParityReport | None = None
    latency: LatencyReport | None = None
    culprit: Culprit | None = None
    assumptions: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    not_run: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()
    stages: tuple[Stage, ...] = ()
    schema: str = SCHEMA_VERSION

    @property
    def fused(self) -> tuple[Site, ...]:
        """The sites that ended fused."""
        return tuple(s for s in self.sites if s.status == "fused")

    @property
    def declined(self) -> tuple[Site, ...]:
        """The sites that did not."""
        return tuple(s for s in self.sites if s.status == "declined")

    def is_of(self, model: Path) -> bool:
        """Whether this is the report of the run that wrote this very file, and its weights beside it."""
        places = {"model": model, "data": model.parent / Path(self.files.get("data", "")).name}
        try:
            return "model" in self.digests and all(
                role in places and sha256_of(places[role]) == digest for role, digest in self.digests.items()
            )
        except OSError:
            return False

    def to_json(self, *, indent: int | None = 2) -> str:
        """The report as JSON text, keys in field order; infinities and NaN as strings."""
        return to_json(self, indent=indent)


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """Serialise a dataclass of this module. Non-finite floats become "nan", "inf" and "-inf" (JSON has none)."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):  # numpy's integers too
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else str(number)


T = TypeVar("T")


def from_json(text: str, kind: type[T]) -> T:
    """Read back what :func:`to_json` wrote. Unknown keys are ignored, so that newer files stay readable.

    Raises:
        ValueError: if the text is no JSON or lacks a field that has no default.
    """
    return _typed(json.loads(text), kind)


def _typed(value: Any, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        arms = [a for a in typing.get_args(kind) if a is not type(None)]
        return None if value is None else _typed(value, arms[0])
    if origin is tuple:
        return tuple(_typed(v, typing.get_args(kind)[0]) for v in value)
    if origin is not None and isinstance(value, Mapping):
        return {k: _typed(v, typing.get_args(kind)[1]) for k, v in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {f.name for f in dataclasses.fields(kind)}
        try:
            return kind(**{k: _typed(v, hints[k]) for k, v in value.items() if k in names})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a {kind.__name__}: {error}") from error
    return float(value) if kind is float else value
