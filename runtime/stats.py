"""Small statistics for timings: percentiles and a paired ratio with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from .report import Ratio

__all__ = ["median", "order_interval", "paired_ratio", "percentile"]


def percentile(values: Sequence[float], q: float) -> float:
    """The ``q``-th percentile (0..100), linear between neighbours. NaN for no values."""
    return float(np.percentile(values, q)) if len(values) else math.nan


def median(values: Sequence[float]) -> float:
    """The middle value. NaN for no values."""
    return percentile(values, 50.0)


def order_interval(count: int, confidence: float = 0.95) -> tuple[int, int] | None:
    """Ranks (from 0) of the two order statistics that enclose the median with at least ``confidence``.

    Exact and free of any assumption on the distribution: the number of samples below the median is
    Binomial(count, 1/2). None when even the full range does not reach the confidence (fewer than 6 samples
    for 95 %).
    """
    tail = (1.0 - confidence) / 2.0
    if count >= 1000:  # normal approximation, where 0.5**count underflows
        rank = math.floor(count / 2 - NormalDist().inv_cdf(1.0 - tail) * math.sqrt(count) / 2)
        return rank - 1, count - rank
    below, rank = 0.5**count, 0
    if below > tail:
        return None
    while below + math.comb(count, rank + 1) * 0.5**count <= tail:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    return rank, count - 1 - rank


def paired_ratio(of: Sequence[float], over: Sequence[float], *, of_name: str, over_name: str) -> Ratio:
    """The median of ``of[i] / over[i]`` with a distribution-free 95 % confidence interval.

    Both sequences hold times of the same rounds, so that a machine that slows down for a while slows both.
    With too few pairs for an interval, it is (0, inf): nothing is claimed.

    Raises:
        ValueError: if the lengths differ or nothing is given.
    """
    if len(of) != len(over) or not len(of):
        raise ValueError(f"paired times are needed: {len(of)} against {len(over)}")
    logs = np.sort(np.log(np.asarray(of, float)) - np.log(np.asarray(over, float)))
    ranks = order_interval(len(logs))
    low, high = (0.0, math.inf) if ranks is None else (math.exp(logs[ranks[0]]), math.exp(logs[ranks[1]]))
    value = math.exp(float(np.median(logs)))
    return Ratio(of=of_name, over=over_name, value=value, low=low, high=high, pairs=len(logs))
