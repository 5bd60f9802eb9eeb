"""Parity of a graph with its reference over a grid of cases: numbers, not adjectives.

Nothing here knows what runs: both sides are callables from named arrays to a sequence of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .attempt import Runner, attempt
from .compare import KEYLESS, compare, grant, relative_error
from .feeds import Case
from .report import Comparison, ParityReport, Verdict
from .sensitivity import Reactions

__all__ = ["ALL_OUTPUTS", "agrees", "refusal", "validate"]

#: Stands for "no single output" in a comparison that concerns a whole case.
ALL_OUTPUTS: Final = "*"

#: Begins the note on a case that the reference refuses.
_REFUSES: Final = "the reference cannot run this case: "


def validate(
    run: Runner,
    reference: Runner,
    cases: Sequence[Case],
    *,
    output_names: Sequence[str],
    tolerance: float = 1e-4,
    reference_name: str = "eager float32",
    basis: str | None = None,
    unfused: Runner | None = None,
    same_dtype: bool = True,
    repeat: bool = True,
    settled: Collection[str] = (),
    halves: bool = False,
    keyless: bool = False,
    on_case: Callable[[Case], None] | None = None,
) -> ParityReport:
    """Compare ``run`` with ``reference`` on every case.

    Fails: an output beyond its tolerance, a wrong shape, dtype, count of outputs or NaN position, a case that only
    ``run`` cannot run, an output that does not react to the inputs, a comparison of nothing. A case that the
    reference itself cannot run is "not-run" with its reason; when that is so for all of them, so is the verdict.

    Args:
        run: The graph under test.
        reference: What it should compute.
        cases: Inputs, from :func:`deployml.runtime.feeds.grid` or the user's own.
        output_names: Names of the outputs, in order.
        tolerance: Granted, relative to the largest reference value of each output and case.
        reference_name: What the reference is, for the report.
        basis: Why that tolerance; None says "<reference_name>".
        unfused: The graph before fusion; its own error is stated and, in half precision, is the yardstick.
        same_dtype: Whether output dtypes must equal the reference's; False allows a wider reference.
        repeat: Run every case twice to see whether the bits repeat.
        settled: Outputs that no value of an input reaches: they are compared, but need not react. Where all are such,
            they must.
        halves: Whether the graph computes in half precision somewhere, whatever its outputs are.
        keyless: Whether the graph rests on an assumption about attention rows without a key; see :func:`compare`.
        on_case: Called before each case, for a progress display.
    """
    names = tuple(output_names)
    trial = _Trial(
        run, reference, unfused, names, tolerance, basis or f"against {reference_name}", same_dtype, halves, keyless
    )
    fixed = frozenset(names) & frozenset(settled) if set(names) - set(settled) else frozenset()
    reactions = Reactions(names, tolerance, ignored=fixed)
    comparisons: list[Comparison] = []
    notes: dict[str, None] = {}
    for case in cases:
        if on_case is not None:
            on_case(case)
        found, outputs, said = trial.judge(case, repeat)
        comparisons += found
        notes |= dict.fromkeys(said)
        if outputs is not None:
            reactions.add(case, outputs)
    if any(c.verdict == "pass" for c in comparisons):
        comparisons += reactions.failures(run)
    notes |= dict.fromkeys(f"'{name}' depends on no value of an input" for name in names if name in fixed)
    notes |= dict.fromkeys(_closing_notes(cases, names, comparisons))
    return ParityReport(
        verdict=_verdict(cases, names, comparisons),
        reference=reference_name,
        comparisons=tuple(comparisons),
        notes=tuple(notes),
    )


def agrees(
    run: Runner,
    reference: Runner,
    case: Case,
    *,
    output_names: Sequence[str],
    tolerance: float,
    unfused: Runner | None = None,
    same_dtype: bool = True,
) -> bool:
    """Whether no output of one case fails; as :func:`validate`, which see for the arguments."""
    trial = _Trial(run, reference, unfused, tuple(output_names), tolerance, "", same_dtype)
    found, _, _ = trial.judge(case, repeat=False)
    return all(c.verdict != "fail" for c in found)


@dataclass(frozen=True, slots=True)
class _Trial:
    """What stays the same from case to case."""

    run: Runner
    reference: Runner
    unfused: Runner | None
    names: tuple[str, ...]
    tolerance: float
    basis: str
    same_dtype: bool
    halves: bool = False
    keyless: bool = False

    def judge(self, case: Case, repeat: bool) -> tuple[list[Comparison], list[np.ndarray] | None, list[str]]:
        """Comparisons of one case, its outputs (None when there are none to look at) and remarks."""
        theirs, why = attempt(self.reference, case.feeds)
        if theirs is None:
            return [self._whole(case, "not-run", f"{_REFUSES}{why}")], None, []
        ours, why = attempt(self.run, case.feeds)
        if ours is None:
            return [self._whole(case, "fail", f"runs in the reference, fails here: {why}")], None, []
        if not (len(ours) == len(theirs) == len(self.names)):
            note = f"{len(ours)} outputs, the reference has {len(theirs)}, {len(self.names)} are named"
            return [self._whole(case, "fail", note)], None, []
        notes = self._repeats(case, ours) if repeat else []
        plain, said = self._unfused(case, len(ours))
        notes += said
        found = [
            self._compare(case, i, ours[i], theirs[i], None if plain is None else plain[i]) for i in range(len(ours))
        ]
        return found, ours, notes

    def _compare(
        self, case: Case, index: int, ours: np.ndarray, theirs: np.ndarray, plain: np.ndarray | None
    ) -> Comparison:
        return compare(
            ours,
            theirs,
            case=case.name,
            output_name=self.names[index],
            granted=grant(self.tolerance, self.basis, ours, theirs, plain, halves=self.halves),
            masks=case.masks,
            same_dtype=self.same_dtype,
            keyless=self.keyless,
        )

    def _whole(self, case: Case, verdict: Verdict, note: str) -> Comparison:
        return Comparison(
            case=case.name,
            output=ALL_OUTPUTS,
            shape=(),
            needed=None,
            granted=self.tolerance,
            basis=self.basis,
            verdict=verdict,
            note=note,
        )

    def _repeats(self, case: Case, first: Sequence[np.ndarray]) -> list[str]:
        second, why = attempt(self.run, case.feeds)
        if second is None:
            return [f"not deterministic: a second run of {case.name} failed: {why}"]
        remarks = []
        for name, a, b in zip(self.names, first, second, strict=False):
            if a.tobytes() != b.tobytes():
                gap = relative_error(b, a)
                size = "" if gap is None else f" by up to {gap:.1e}"
                remarks.append(f"not deterministic: '{name}' of {case.name} differs between two runs{size}")
        return remarks

    def _unfused(self, case: Case, count: int) -> tuple[list[np.ndarray] | None, list[str]]:
        if self.unfused is None:
            return None, []
        plain, why = attempt(self.unfused, case.feeds)
        if plain is None or len(plain) != count:
            return None, [f"the unfused graph gave no yardstick for {case.name}: {why or 'other outputs'}"]
        return plain, []


def _closing_notes(cases: Sequence[Case], names: Sequence[str], comparisons: Sequence[Comparison]) -> list[str]:
    if not cases:
        return ["there were no cases: nothing was compared"]
    if not names:
        return ["the model has no outputs: nothing was compared"]
    notes = []
    for name in names:
        said = [c.note for c in comparisons if c.output == name and c.verdict == "pass" and c.note is not None]
        keyless = sum(note.startswith(KEYLESS) for note in said)
        if len(said) > keyless:
            notes.append(
                f"'{name}' differs at padded positions in {len(said) - keyless} cases; the real ones were judged"
            )
        if keyless:
            notes.append(f"'{name}': {KEYLESS} in {keyless} cases; the other numbers were judged")
    skipped = list(dict.fromkeys(c.case for c in comparisons if c.verdict == "not-run"))
    if skipped:
        notes.append(f"{len(skipped)} of {len(cases)} cases were not run or had nothing to compare")
    return notes


def refusal(parity: ParityReport) -> str | None:
    """The reference's own words, in one line, where it ran no case of a comparison at all; else None."""
    told = [c for c in parity.comparisons if c.output == ALL_OUTPUTS and (c.note or "").startswith(_REFUSES)]
    if parity.verdict != "not-run" or not told or len(told) < len({c.case for c in parity.comparisons}):
        return None
    said = str(told[0].note).removeprefix(_REFUSES)
    return f"{parity.reference} runs none of the {len(told)} cases; at {told[0].case}: {said}"


def _verdict(cases: Sequence[Case], names: Sequence[str], comparisons: Sequence[Comparison]) -> Verdict:
    if not cases or not names or any(c.verdict == "fail" for c in comparisons):
        return "fail"
    return "pass" if any(c.verdict == "pass" for c in comparisons) else "not-run"
