"""What a report says in sentences: the verdict first, then each finding as one would tell it to a colleague."""

from __future__ import annotations

import math
from typing import Final

from ..report import LatencyReport, ParityReport, Ratio, Report, Verdict
from ..sensitivity import SENSITIVITY
from ..words import counted
from .numbers import ceiling_percent, factor, power

__all__ = [
    "careful",
    "case_count",
    "headline",
    "label",
    "latency_sentence",
    "parity_sentence",
    "plain_op",
    "ratio_sentence",
    "who",
]

#: An interval whose ends differ by more than this factor is told by its careful end.
_VAGUE: Final = 1.5

_LABELS: dict[Verdict, str] = {
    "pass": "Pass",
    "fail": "Fail",
    "inconclusive": "Inconclusive",
    "not-run": "Not run",
}


def label(verdict: Verdict) -> str:
    """The verdict as a word to print."""
    return _LABELS[verdict]


def plain_op(name: str | None) -> str:
    """An operator without the domain that everybody knows."""
    return (name or "–").removeprefix("com.microsoft::").removeprefix("ai.onnx::").removeprefix("::")


def case_count(parity: ParityReport) -> int:
    """How many cases were really compared."""
    return len({c.case for c in parity.comparisons if c.verdict != "not-run"} - {SENSITIVITY})


def headline(report: Report) -> str:
    """The verdict of the run in one or two sentences."""
    parts = [part for part in (_fusion(report), _equality(report), _speed(report)) if part]
    if not parts:
        return "Nothing was fused, compared or timed."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _fusion(report: Report) -> str:
    total, fused = len(report.sites), len(report.fused)
    if "fusion" in report.not_run:
        return "attention was left unfused on request"
    if not total:
        return "no attention was found in this model" if report.command in ("export", "optimize") else ""
    if fused == total:
        return "its one attention is fused" if total == 1 else f"all {total} attentions are fused"
    if not fused:
        return "its one attention was not fused" if total == 1 else f"none of its {total} attentions was fused"
    return f"{fused} of {total} attentions are fused"


def _equality(report: Report) -> str:
    parity = report.parity
    if parity is None:
        return "results were not compared with the source"
    cases = case_count(parity)
    where = f"in {counted(cases, 'case')}"
    if parity.verdict == "pass":
        return f"results agree with {parity.reference} {where}"
    if parity.verdict == "fail":
        bad = len({c.case for c in parity.comparisons if c.verdict == "fail"} - {SENSITIVITY})
        count = f" in {bad} of {cases} cases" if bad and cases else ""
        return f"results do not agree with {parity.reference}{count}"
    return f"results could not be compared with {parity.reference}"


def _speed(report: Report) -> str:
    if report.latency is None:
        return ""
    if report.latency.verdict == "fail":
        return "it is slower than was allowed"
    said = [_short_ratio(r) for r in report.latency.ratios if r.of in ("eager", "unfused")]
    return "it is " + " and ".join(said) if said else ""


def careful(ratio: Ratio) -> bool:
    """Whether an interval is so wide that its careful end is told instead of the middle."""
    return ratio.low > 0 and ratio.high > _VAGUE * ratio.low


def _short_ratio(ratio: Ratio) -> str:
    if ratio.low <= 1 <= ratio.high:
        return f"not measurably faster or slower than {who(ratio.of)}"
    low = ratio.low if ratio.value > 1 else 1 / ratio.high
    word = "faster" if ratio.value > 1 else "slower"
    if careful(ratio):  # one number would say more than was measured
        return f"at least {factor(low)} {word} than {who(ratio.of)}"
    return f"{factor(max(ratio.value, 1 / ratio.value))} {word} than {who(ratio.of)}"


def who(name: str) -> str:
    """A contender as one speaks of it."""
    return {"eager": "eager PyTorch", "unfused": "the unfused graph"}.get(name, name)


def ratio_sentence(ratio: Ratio) -> str:
    """ "1.23× faster than eager PyTorch, 95 % interval 1.20 to 1.26, 50 paired runs"."""
    runs = f"{ratio.pairs} paired runs"
    if ratio.low <= 0 or math.isinf(ratio.high):
        return f"No claim about {who(ratio.of)}: {runs} are too few for an interval."
    if ratio.low <= 1 <= ratio.high:
        interval = f"{ratio.low:.2f} to {ratio.high:.2f}"
        measured = f"ratio {ratio.value:.2f}, 95 % interval {interval}, {runs}"
        return f"No measurable difference from {who(ratio.of)}: {measured}."
    faster = ratio.value > 1
    value, low, high = (
        (ratio.value, ratio.low, ratio.high) if faster else (1 / ratio.value, 1 / ratio.high, 1 / ratio.low)
    )
    word = "faster" if faster else "slower"
    return f"{factor(value)} {word} than {who(ratio.of)}, 95 % interval {low:.2f} to {high:.2f}, {runs}."


def parity_sentence(parity: ParityReport) -> str:
    """How far the outputs are from the reference, against what was granted."""
    worst = parity.worst
    if worst is None or worst.needed is None:
        return "There is no number to judge by."
    used = worst.needed / worst.granted if worst.granted > 0 else math.inf
    place = f"output “{worst.output}” at {worst.case}"
    if used > 1:
        return f"The largest difference is {power(worst.needed)} where {power(worst.granted)} is granted: {place}."
    return (
        f"The largest difference is {power(worst.needed)} of the largest value, {ceiling_percent(used)} of the "
        f"{power(worst.granted)} that is granted: {place}."
    )


def latency_sentence(latency: LatencyReport) -> str:
    """How it was timed."""
    shapes = ", ".join(f"{name} {_shape(shape)}" for name, shape in latency.shapes.items())
    threads = counted(latency.threads, "thread")
    return f"All contenders were timed in turn in one process, on the same tensors ({shapes}) and {threads}."


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "scalar"
