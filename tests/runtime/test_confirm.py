"""A time that fails must fail twice: on a busy machine the second time in processor time."""

import time

import pytest

from deployml.exporter import measuring
from deployml.runtime.confirm import confirmed
from deployml.runtime.report import LatencyReport, Ratio


def report(verdict: str, low: float, high: float) -> LatencyReport:
    one = Ratio(of="unfused", over="fused", value=(low + high) / 2, low=low, high=high, pairs=20, verdict=verdict)
    other = Ratio(of="eager", over="fused", value=2, low=1.9, high=2.1, pairs=20, verdict="pass")
    return LatencyReport(verdict=verdict, shapes={}, threads=1, ratios=(one, other))


SLOW = report("fail", 0.4, 0.6)


def test_what_fails_twice_fails():
    assert confirmed(SLOW, report("fail", 0.5, 0.55)) == SLOW


@pytest.mark.parametrize("again", ["pass", "inconclusive"])
def test_what_fails_once_is_undecided_and_says_so(again):
    found = confirmed(SLOW, report(again, 0.9, 1.1))
    assert found.verdict == "inconclusive"
    assert (found.ratios[0].verdict, found.ratios[0].low, found.ratios[0].high) == ("inconclusive", 0.4, 1.1)
    assert found.ratios[1] == SLOW.ratios[1]
    assert any("did not confirm" in note for note in found.notes)


def test_only_what_fails_is_measured_again():
    asked = []

    def measure(**options):
        asked.append(options)
        return SLOW if len(asked) == 1 else report("fail", 0.5, 0.55)

    assert measuring._decided(measure, 4.0, time.process_time) is SLOW
    assert asked == [{"seconds": 4.0}, {"seconds": 2.0, "clock": time.process_time}]
    asked.clear()
    assert measuring._decided(measure, 4.0, None) is SLOW
    assert asked[1] == {"seconds": 2.0}
    asked.clear()
    fine = report("pass", 1.1, 1.2)
    assert measuring._decided(lambda **options: asked.append(options) or fine, 4.0, None) is fine
    assert len(asked) == 1
