"""Random masks run by onnxruntime do at every place what their facts say."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from deployml.passes.masks import analyse

from .mask_graphs import MODES, Draw, Graph, check


def _one(seed: int) -> tuple[str, bool]:
    rng = random.Random(seed)
    mode = MODES[rng.choice(sorted(MODES))]
    graph = Graph(mode)
    mask, boolean = Draw(graph, rng).mask()
    forbids = boolean and rng.random() < 0.3
    facts = analyse(mask, query_dim=mode.query, key_dim=mode.key, forbids=forbids)
    if facts is None:
        return "unknown", False
    assert check(graph, mask, facts, seed, forbids=forbids) > 0
    typed = any(type(c).__name__ != "Always" for c in facts.conjuncts)
    return ("residual" if facts.residual else "exact"), typed


@pytest.mark.parametrize("block", range(10))
def test_facts_are_true_of_random_masks(block: int) -> None:
    found = Counter(_one(seed) for seed in range(block * 30, block * 30 + 30))
    # A run in which nothing is recognised would prove nothing.
    assert found["exact", True] >= 8, found


@pytest.mark.slow
def test_facts_are_true_of_many_random_masks() -> None:
    found = Counter(_one(seed) for seed in range(10_000, 13_000))
    assert found["exact", True] >= 1_000, found
