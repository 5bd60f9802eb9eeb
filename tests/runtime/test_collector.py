"""Rare garbage collections during an export: raised, nested, put back."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from deployml.runtime.collector import few_collections


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def test_collections_are_rare_inside_and_as_before_after() -> None:
    with few_collections():
        outer = gc.get_threshold()
        with few_collections():
            assert gc.get_threshold() == outer
        assert gc.get_threshold() == outer
        assert outer[0] > 10_000
    assert gc.get_threshold() == (700, 10, 10)


def test_an_error_puts_the_thresholds_back() -> None:
    with pytest.raises(ValueError, match="no"), few_collections():
        raise ValueError("no")
    assert gc.get_threshold() == (700, 10, 10)


@pytest.mark.parametrize("asked", [(0, 10, 10), (10_000_000, 50, 50)])
def test_a_process_that_collects_less_keeps_its_way(asked: tuple[int, int, int]) -> None:
    gc.set_threshold(*asked)
    with few_collections():
        assert gc.get_threshold() == asked


def test_thresholds_set_meanwhile_are_kept() -> None:
    with few_collections():
        gc.set_threshold(5, 5, 5)
    assert gc.get_threshold() == (5, 5, 5)
