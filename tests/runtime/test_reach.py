"""Least sizes are found by running, and the grid keeps above them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from deployml.runtime.feeds import InputSpec, grid
from deployml.runtime.reach import least_sizes

SPEECH = (InputSpec(name="samples", dtype="float32", shape=("batch", "length")),)
IMAGE = (InputSpec(name="pixels", dtype="float32", shape=("batch", 3, "height", "width")),)


class Least:
    """A model that takes nothing below some sizes of its last axes, and counts how often it is asked."""

    def __init__(self, *sizes: int) -> None:
        self.sizes, self.runs = sizes, 0

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        self.runs += 1
        *_, value = feeds.values()
        if any(size < least for size, least in zip(value.shape[-len(self.sizes) :], self.sizes, strict=True)):
            raise RuntimeError("kernel larger than input")
        return [value]


@pytest.mark.parametrize("shown", [{}, {"batch": 2, "length": 1000}])
def test_a_least_length_is_found(shown: dict[str, int]) -> None:
    assert least_sizes(SPEECH, Least(265), shown=shown) == {"length": (265, None)}


def test_each_axis_has_its_own() -> None:
    assert least_sizes(IMAGE, Least(33, 70)) == {"height": (33, None), "width": (70, None)}


def test_bounds_that_are_known_are_kept() -> None:
    limits = {"batch": (1, 4), "length": (100, 5000)}
    assert least_sizes(SPEECH, Least(265), limits=limits) == {"batch": (1, 4), "length": (265, 5000)}


def test_no_thousands_of_tokens_are_tried() -> None:
    tokens = (
        InputSpec(name="mask", dtype="float32", shape=("batch", "length"), role="attention-mask"),
        InputSpec(name="ids", dtype="int64", shape=("batch", "length")),
    )
    scaled = (InputSpec(name="scale", dtype="float32", shape=()), *SPEECH)
    assert least_sizes(scaled, Least(3000)) == {"length": (3000, None)}
    assert least_sizes(tokens, Least(3000)) == {} and least_sizes(tokens, Least(1000)) == {"length": (1000, None)}


def test_a_model_that_runs_is_asked_once() -> None:
    model = Least(5)
    assert least_sizes(SPEECH, model) == {} and model.runs == 1


def test_a_single_axis_is_a_length() -> None:
    audio = (InputSpec(name="audio", dtype="float32", shape=("samples",)),)
    assert least_sizes(audio, Least(400)) == {"samples": (400, None)}


def test_an_example_below_what_is_known_lowers_nothing() -> None:
    limits = {"length": (40, None)}
    assert least_sizes(SPEECH, Least(90), shown={"batch": 1, "length": 30}, limits=limits) == {"length": (90, None)}


def test_sizes_that_no_grid_can_have_are_not_taken_for_least_ones() -> None:
    def square(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        (value,) = feeds.values()
        assert value.shape[-1] == value.shape[-2]
        return [value]

    assert least_sizes(IMAGE, square) == {}


def test_a_model_that_runs_nowhere_keeps_its_limits() -> None:
    assert least_sizes(SPEECH, Least(1 << 40), limits={"length": (3, None)}) == {"length": (3, None)}


@pytest.mark.parametrize(("traced", "longest"), [({}, 1057), ({"length": 1000}, 1357)])
def test_lengths_above_a_least_one_are_spread(traced: dict[str, int], longest: int) -> None:
    lengths = [case.sizes["length"] for case in grid(SPEECH, traced=traced, limits={"length": (265, None)})]
    assert len(set(lengths)) == len(lengths) and min(lengths) == 265 and max(lengths) == longest
    assert 1000 not in lengths


def test_both_axes_of_an_image_differ() -> None:
    cases = grid(IMAGE, limits={"height": (64, None), "width": (64, None)})
    assert all(case.sizes["height"] != case.sizes["width"] for case in cases[:1] + cases[2:])
