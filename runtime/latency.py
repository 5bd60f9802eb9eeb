"""Latency as evidence: contenders timed in turn in one process, compared round by round.

A machine that is slow for a while is slow for all contenders of a round, so ratios of one round are trusted and
times of different rounds are not compared. Order alternates from round to round.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnxruntime

from .isolate import is_out_of_memory, out_of_memory
from .report import Contender, LatencyReport, Ratio, Verdict
from .session import feeds_for
from .stats import median, paired_ratio, percentile
from .tensors import to_ort

__all__ = ["BASE", "Clock", "bench", "bound_runner"]

#: The contender that the others are compared with.
BASE: Final = "fused"

_MIN_ROUNDS: Final = 12
_SAMPLE_SECONDS: Final = 1e-3  # shorter runs are repeated within a sample: the clock and Python cost microseconds
_STEADY: Final = 0.05  # warm-up ends when the median of five runs moves by less than this
_WINDOW: Final = 5

#: Seconds, monotonic.
Clock = Callable[[], float]


def bench(
    contenders: Mapping[str, Callable[[], None]],
    *,
    shapes: Mapping[str, tuple[int, ...]],
    threads: int,
    providers: Mapping[str, str] | None = None,
    seconds: float = 10.0,
    rounds: int | None = None,
    max_slowdown: float | None = None,
    against: Sequence[str] = ("unfused",),
    base: str = BASE,
    flops: int | None = None,
    peak_flops: float | None = None,
    notes: Sequence[str] = (),
    clock: Clock = time.perf_counter,
) -> LatencyReport:
    """Time ``contenders`` in interleaved rounds and compare each with ``base``.

    Args:
        contenders: Name to a callable that runs the model once, to the end.
        shapes: Input shapes, for the report.
        threads: Threads that every contender was given.
        providers: Contender to the provider that carries it ("CPUExecutionProvider", "torch-cpu").
        seconds: Time for all of it, warm-up included (about a third).
        rounds: Exact number of rounds instead of as many as fit.
        max_slowdown: How many times slower than each of ``against`` the base may be. None: nothing can fail.
        against: Contenders that ``max_slowdown`` refers to; absent ones are noted.
        base: Name of the contender under test.
        flops: Floating-point operations of one run, for the share of ``peak_flops`` that the base reaches.
        peak_flops: The machine's measured peak, operations a second.
        notes: Remarks to pass on.
        clock: Seconds, monotonic.

    Returns:
        Ratios of every contender over the base: 2.0 says that the base is twice as fast. With ``max_slowdown``
        a ratio passes or fails only where its whole 95 % interval does, else it is "inconclusive".
    """
    said = list(notes)
    alive = _warm_up(contenders, seconds / 3, clock, said)
    if base not in alive:
        said.append(f"there is no time of '{base}', which the others are compared with")
        return LatencyReport(verdict="not-run", shapes=dict(shapes), threads=threads, notes=tuple(said))
    times = _rounds(alive, seconds * 2 / 3, rounds, clock)
    ratios = tuple(
        _judged(paired_ratio(times[name], times[base], of_name=name, over_name=base), max_slowdown, against)
        for name in alive
        if name != base
    )
    said += _remarks(ratios, max_slowdown, against)
    used = providers or {}
    listed = tuple(_contender(name, times[name], used.get(name, "unknown"), alive[name].inner) for name in alive)
    share = _share_of_peak(flops, peak_flops, median(times[base]))
    if share is not None and share > 1:  # the peak was measured while others had the processors
        share, peak_flops = None, None
        said.append("the machine was too busy for its peak to be measured: measure again")
    return LatencyReport(
        verdict=_verdict(ratios, max_slowdown, against),
        shapes=dict(shapes),
        threads=threads,
        contenders=listed,
        ratios=ratios,
        flops=flops,
        peak_flops=peak_flops,
        mfu=share,
        notes=tuple(said),
    )


def bound_runner(
    session: onnxruntime.InferenceSession, named: Mapping[str, np.ndarray], *, device: str = "cpu"
) -> Callable[[], None]:
    """A callable that runs ``session`` on fixed inputs already on the device, into outputs allocated once.

    Args:
        session: From :func:`deployml.runtime.session.open_session`.
        named: Inputs by name; checked.
        device: "cpu" or "cuda": where inputs and outputs live.

    Raises:
        InputError: if the inputs do not fit the model.
    """
    feeds = feeds_for(session, named)
    binding = session.io_binding()
    held = {name: to_ort(array, device) for name, array in feeds.items()}
    for name, value in held.items():
        binding.bind_ortvalue_input(name, value)
    names = [output.name for output in session.get_outputs()]
    for name in names:
        binding.bind_output(name, device)
    session.run_with_iobinding(binding)  # finds the output shapes
    for name, value in zip(names, binding.get_outputs(), strict=True):
        binding.bind_ortvalue_output(name, value)

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


@dataclass(frozen=True, slots=True)
class _Runner:
    """A warm contender: ``inner`` runs make one sample."""

    run: Callable[[], None]
    inner: int

    def sample(self, clock: Clock) -> float:
        """Seconds a run, averaged over one sample."""
        start = clock()
        for _ in range(self.inner):
            self.run()
        return max(clock() - start, 1e-9) / self.inner


def _warm_up(
    contenders: Mapping[str, Callable[[], None]], seconds: float, clock: Clock, notes: list[str]
) -> dict[str, _Runner]:
    """Run each contender until its time is steady. One that raises is left out and noted."""
    alive: dict[str, _Runner] = {}
    for name, run in contenders.items():
        try:
            steady, typical = _until_steady(run, seconds / len(contenders), clock)
        except Exception as error:  # torch and onnxruntime raise classes of their own; the others are still timed
            if is_out_of_memory(error):
                raise out_of_memory(f"the run of '{name}'") from error
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            notes.append(f"'{name}' was not timed: {first}")
            continue
        if not steady:
            notes.append(f"'{name}' had not become steady when the warm-up ended")
        alive[name] = _Runner(run, max(1, math.ceil(_SAMPLE_SECONDS / typical)))
    return alive


def _until_steady(run: Callable[[], None], seconds: float, clock: Clock) -> tuple[bool, float]:
    start = clock()
    times: list[float] = []
    while True:
        times.append(_Runner(run, 1).sample(clock))
        if len(times) >= 2 * _WINDOW:
            now, before = median(times[-_WINDOW:]), median(times[-2 * _WINDOW : -_WINDOW])
            if abs(now - before) <= _STEADY * before:
                return True, now
        if clock() - start >= seconds and len(times) >= 2:
            return False, median(times[-_WINDOW:])


def _rounds(alive: Mapping[str, _Runner], seconds: float, rounds: int | None, clock: Clock) -> dict[str, list[float]]:
    """Times in seconds, one a round for each contender; the order turns round by round and reverses."""
    names = list(alive)
    times: dict[str, list[float]] = {name: [] for name in names}
    start, done = clock(), 0
    with _no_garbage_collection():
        while done < rounds if rounds is not None else done < _MIN_ROUNDS or clock() - start < seconds:
            turn = (done // 2) % len(names)
            order = names[turn:] + names[:turn]
            for name in order if done % 2 == 0 else reversed(order):
                times[name].append(alive[name].sample(clock))
            done += 1
    return times


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _contender(name: str, times: Sequence[float], provider: str, inner: int) -> Contender:
    return Contender(
        name=name,
        median_ms=median(times) * 1e3,
        p90_ms=percentile(times, 90) * 1e3,
        p99_ms=percentile(times, 99) * 1e3,
        runs=len(times) * inner,
        provider=provider,
        note=f"samples are means of {inner} runs" if inner > 1 else None,
    )


def _judged(ratio: Ratio, max_slowdown: float | None, against: Sequence[str]) -> Ratio:
    """The ratio with its verdict: does the base stay within ``max_slowdown`` of this contender?

    Without a bound nothing fails; "inconclusive" then says that the interval holds 1: no one is faster.
    """
    slowdown_low, slowdown_high = 1 / ratio.high, 1 / ratio.low if ratio.low > 0 else math.inf
    verdict: Verdict = "pass"
    if max_slowdown is None or ratio.of not in against:
        verdict = "inconclusive" if ratio.low <= 1 <= ratio.high else "pass"
    elif slowdown_low > max_slowdown:
        verdict = "fail"
    elif slowdown_high > max_slowdown:
        verdict = "inconclusive"
    return replace(ratio, verdict=verdict)


def _verdict(ratios: Sequence[Ratio], max_slowdown: float | None, against: Sequence[str]) -> Verdict:
    if max_slowdown is None:
        return "pass"
    verdicts = [r.verdict for r in ratios if r.of in against]
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts and all(v == "pass" for v in verdicts) else "inconclusive"


def _remarks(ratios: Sequence[Ratio], max_slowdown: float | None, against: Sequence[str]) -> list[str]:
    said = []
    for ratio in ratios:
        if ratio.high < 1:
            said.append(
                f"'{ratio.over}' is slower than '{ratio.of}': {1 / ratio.value:.2f} times as long "
                f"(95 % interval {1 / ratio.high:.2f} to {1 / max(ratio.low, 1e-9):.2f})"
            )
    present = {r.of for r in ratios}
    if max_slowdown is not None:
        said += [f"'{name}' is not there to hold max-slowdown against" for name in against if name not in present]
    return said


def _share_of_peak(flops: int | None, peak_flops: float | None, seconds: float) -> float | None:
    if flops is None or peak_flops is None or peak_flops <= 0:
        return None
    return flops / seconds / peak_flops
