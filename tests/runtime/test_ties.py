"""A mask over all positions of a decoder with a cache is as long as the past and the new positions together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from deployml.runtime.feeds import InputSpec, grid
from deployml.runtime.reach import reachable
from deployml.runtime.ties import ties

Model = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


def decoder(mask: str, new: int | str = "seq", past: str = "past", **more: tuple[int | str, ...]) -> list[InputSpec]:
    ids = InputSpec(name="ids", dtype="int64", shape=("batch", new), role="token-ids")
    kept = InputSpec(name="m", dtype="int64", shape=("batch", mask), role="attention-mask")
    caches = {"k": ("batch", 2, past, 8), "v": ("batch", 2, past, 8), **more}
    return [ids, kept, *(InputSpec(name=n, dtype="float32", shape=shape) for n, shape in caches.items())]


def takes(holds: Callable[[int, int, int], bool]) -> Model:
    """A model that refuses lengths of the mask, the past and the new positions for which ``holds`` is false."""

    def run(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        if not holds(feeds["m"].shape[-1], feeds["k"].shape[2], feeds["ids"].shape[1]):
            raise RuntimeError("indices out of bounds")
        return [feeds["m"]]

    return run


def mask_axis(specs: Sequence[InputSpec]) -> int | str:
    return next(spec.shape[-1] for spec in specs if spec.name == "m")


def together(mask: int, past: int, new: int) -> bool:
    return mask == past + new


@pytest.mark.parametrize("name", ["total", "total_sequence_length", "attention_mask_sequence_length", "past + 1"])
def test_a_mask_over_all_positions_is_tied(name: str) -> None:
    specs = decoder(name)
    meant, limits = reachable(specs, takes(together))
    assert (mask_axis(meant), limits) == ("past + seq", {})
    cases = grid(meant)
    assert all(together(c.feeds["m"].shape[1], c.sizes["past"], c.sizes["seq"]) for c in cases)
    assert len({(c.sizes["past"], c.sizes["seq"]) for c in cases}) > 3


@pytest.mark.parametrize(
    ("holds", "axis"),
    [
        (lambda mask, past, new: True, "past + seq"),
        (lambda mask, past, new: mask != past + new, "total"),
        (lambda mask, past, new: mask == past, "past"),
        (lambda mask, past, new: False, "total"),
    ],
)
def test_what_runs_decides(holds: Callable[[int, int, int], bool], axis: str) -> None:
    assert mask_axis(reachable(decoder("total"), takes(holds))[0]) == axis


def test_a_model_of_one_row_is_tied_too() -> None:
    def run(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        assert len(feeds["ids"]) == 1
        return takes(together)(feeds)

    assert mask_axis(reachable(decoder("total"), run)[0]) == "past + seq"


def test_a_mask_of_one_position_decides_nothing() -> None:
    broadcast = takes(lambda mask, past, new: mask in (1, past + new + 1))
    assert mask_axis(reachable(decoder("total"), broadcast)[0]) == "total"


def test_new_positions_may_be_fixed_and_the_past_may_come_first() -> None:
    assert mask_axis(reachable(decoder("total", new=1), takes(together))[0]) == "past + 1"
    axes = [
        mask_axis(way) for way in ties(decoder("total", more=("batch", 2, "other", 8), rest=("batch", "seq", 3, 8)))
    ]
    assert axes[:2] == ["past + seq", "total"]


def test_additive_masks_of_four_axes_and_several_masks_are_tied() -> None:
    specs = decoder("total")
    specs[1] = replace(specs[1], dtype="float32", shape=("batch", 1, "seq", "total"), role="additive-mask")
    assert mask_axis(reachable(specs, takes(together))[0]) == "past + seq"
    other = InputSpec(name="far", dtype="int64", shape=("batch", "source"), role="attention-mask")

    def run(feeds: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        assert feeds["far"].shape[1] != feeds["m"].shape[-1]
        return takes(together)(feeds)

    meant, _ = reachable([*specs, other], run)
    assert mask_axis(meant) == "past + seq" and meant[-1].shape == ("batch", "source")


@pytest.mark.parametrize(
    "specs",
    [
        decoder("past + seq"),
        decoder("seq"),
        decoder("past"),
        decoder("total")[:2],
        decoder("total", states=("batch", "total", 8)),
        decoder("batch"),
    ],
)
def test_other_masks_stay_as_declared(specs: list[InputSpec]) -> None:
    assert reachable(specs, lambda feeds: [feeds["m"]])[0] == tuple(specs)


def test_names_that_are_no_names_of_python_are_left_alone() -> None:
    assert [mask_axis(way) for way in ties(decoder("total", past="past.0"))] == []
