import gc
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployml.runtime.errors import InputError
from deployml.runtime.latency import bench, bound_runner
from deployml.runtime.session import open_session
from deployml.runtime.stats import median, order_interval, paired_ratio, percentile


class FakeMachine:
    """A clock that contenders move, with a load that comes and goes, so that no test hangs on a real time."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.order: list[str] = []

    def clock(self) -> float:
        return self.now

    def contender(self, name: str, seconds: float, noise: float = 0.02):
        def run() -> None:
            self.order.append(name)
            load = 2.0 if int(self.now / 0.7) % 3 == 1 else 1.0
            self.now += seconds * load * (1 + noise * self.random.random())

        return run


def timed(seconds: dict[str, float], *, noise: float = 0.02, seed: int = 0, **options):
    machine = FakeMachine(seed)
    contenders = {name: machine.contender(name, s, noise) for name, s in seconds.items()}
    shapes = {"x": (2, 7)}
    return bench(contenders, shapes=shapes, threads=2, clock=machine.clock, **options), machine


def test_ratios_are_found_under_a_changing_load():
    report, _ = timed({"fused": 0.010, "unfused": 0.015, "eager": 0.030})
    ratios = {r.of: r for r in report.ratios}
    assert set(ratios) == {"unfused", "eager"}
    assert ratios["eager"].low <= 3.0 <= ratios["eager"].high
    assert ratios["unfused"].value == pytest.approx(1.5, rel=0.02)
    assert report.verdict == "pass"
    assert [c.name for c in report.contenders] == ["fused", "unfused", "eager"]
    assert all(c.median_ms <= c.p90_ms <= c.p99_ms for c in report.contenders)


@pytest.mark.parametrize(("slow", "verdict"), [(1.6, "fail"), (1.3, "pass")])
def test_max_slowdown(slow, verdict):
    report, _ = timed({"fused": 0.010 * slow, "unfused": 0.010}, max_slowdown=1.5)
    assert report.verdict == verdict
    assert any("'fused' is slower than 'unfused'" in note for note in report.notes)


def test_what_cannot_be_decided_is_inconclusive():
    report, _ = timed({"fused": 0.010, "unfused": 0.010}, noise=3.0, max_slowdown=1.0, rounds=15)
    assert report.verdict == "inconclusive"
    few, _ = timed({"fused": 0.010, "unfused": 0.010}, max_slowdown=1.5, rounds=3)
    assert few.verdict == "inconclusive"
    assert few.ratios[0].high == math.inf


def test_no_false_failure_in_many_runs(monkeypatch):
    monkeypatch.setattr(gc, "collect", lambda: 0)  # of a test run's whole heap, fifty times; the clock is no real one
    verdicts = [
        timed({"fused": 0.01, "unfused": 0.01}, noise=1.0, seed=s, max_slowdown=1.5)[0].verdict for s in range(50)
    ]
    assert "fail" not in verdicts


def test_rounds_are_interleaved_and_their_order_alternates():
    _, machine = timed({"fused": 0.01, "a": 0.01, "b": 0.01}, rounds=6)
    turns = [tuple(machine.order[-18:][i : i + 3]) for i in range(0, 18, 3)]
    assert all(set(turn) == {"fused", "a", "b"} for turn in turns)
    assert turns[1] == turns[0][::-1]
    assert len({turn[0] for turn in turns}) == 3


def test_short_runs_are_repeated_within_a_sample():
    report, _ = timed({"fused": 1e-5, "unfused": 1e-5}, rounds=10)
    fused = report.contenders[0]
    assert fused.runs > 10 * 30
    assert "means of" in fused.note


def test_a_contender_that_raises_is_noted_and_left_out():
    def broken():
        raise RuntimeError("inductor is missing\nlong story")

    machine = FakeMachine()
    options = {"shapes": {}, "threads": 1, "clock": machine.clock, "rounds": 8}
    report = bench({"fused": machine.contender("fused", 0.01), "compile": broken}, **options)
    assert [c.name for c in report.contenders] == ["fused"]
    assert "'compile' was not timed: inductor is missing" in report.notes
    assert bench({"fused": broken, "eager": machine.contender("eager", 0.01)}, **options).verdict == "not-run"


def test_a_bound_without_its_contender_is_not_a_pass():
    report, _ = timed({"fused": 0.01, "eager": 0.02}, max_slowdown=1.5)
    assert report.verdict == "inconclusive"
    assert any("'unfused' is not there" in note for note in report.notes)


def test_share_of_peak():
    report, _ = timed({"fused": 0.01}, noise=0.0, flops=1_000_000, peak_flops=1e9, rounds=8)
    assert report.mfu == pytest.approx(0.1, rel=0.6)  # the load of the machine is between 1 and 2


def test_more_than_the_peak_is_no_share_of_it():
    report, _ = timed({"fused": 0.01}, noise=0.0, flops=1_000_000, peak_flops=1e6, rounds=8)
    assert report.mfu is None and report.peak_flops is None
    assert any("too busy for its peak" in note for note in report.notes)


def test_a_deliberate_slowdown_is_caught_with_the_real_clock():
    """The self-test of the harness: one sleeps twice as long as the other, whatever else the machine does."""
    report = bench(
        {"fused": lambda: time.sleep(0.04), "unfused": lambda: time.sleep(0.02)},
        shapes={},
        threads=1,
        seconds=2.0,
        max_slowdown=1.2,
    )
    assert report.verdict == "fail"
    assert report.ratios[0].high < 1


def test_a_bound_runner_computes_into_its_own_outputs(relu_model):
    session = open_session(relu_model, threads=1, stop_spinning=True)
    run = bound_runner(session, {"x": np.ones((3, 4), np.float32)})
    run()
    report = bench({"fused": run}, shapes={"x": (3, 4)}, threads=1, rounds=6, seconds=0.1)
    assert report.contenders[0].runs >= 6
    with pytest.raises(InputError, match="missing x"):
        bound_runner(session, {})


# stats


def test_percentiles():
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert (median(values), percentile(values, 0), percentile(values, 100)) == (3.0, 1.0, 5.0)
    assert math.isnan(median([]))


@pytest.mark.parametrize(
    ("count", "ranks"), [(5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (20, (5, 14)), (100, (39, 60))]
)
def test_order_interval_against_the_binomial_tables(count, ranks):
    assert order_interval(count) == ranks


@given(st.integers(6, 400))
def test_order_interval_has_at_least_its_confidence_and_no_slack(count):
    low, high = order_interval(count)

    def outside(rank):
        return 2 * sum(math.comb(count, k) for k in range(rank + 1)) * 0.5**count

    assert low + high == count - 1
    assert outside(low) <= 0.05 < outside(low + 1)


def test_order_interval_of_many_is_close_to_the_exact_one():
    assert order_interval(1000)[0] == pytest.approx(order_interval(999)[0], abs=1)


def test_paired_ratio_ignores_what_hits_both():
    load = [1.0, 5.0, 2.0, 1.0, 9.0, 1.0, 3.0, 1.0]
    ratio = paired_ratio([2.0 * x for x in load], load, of_name="eager", over_name="fused")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match="2 against 1"):
        paired_ratio([1.0, 2.0], [1.0], of_name="a", over_name="b")
