"""The search for the first bad state: always right, few states at a time, few repetitions."""

from __future__ import annotations

import pytest

from deployml.runtime.bisect import first_bad


@pytest.mark.parametrize("count", [1, 2, 3, 24, 25, 26, 100, 577, 3000])
def test_every_first_bad_state_is_found(count):
    for number in {1, 2, count // 3, count // 2, count - 1, count} - {0}:
        kept, replays = [0], [0]

        def replay(wanted, kept=kept, replays=replays, count=count):
            assert all(0 < n < count for n in wanted)
            kept[0], replays[0] = max(kept[0], len(wanted)), replays[0] + 1
            return {n: n for n in wanted}

        if number <= count:
            assert first_bad(count, replay, lambda state, number=number: state >= number) == number
            assert kept[0] <= 24 and replays[0] <= 3
