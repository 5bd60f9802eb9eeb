"""Tests of branches on the values of tensors: assumed, left out, or refused."""

from __future__ import annotations

import pytest
import torch

from deployml.exporter.capture import capture
from deployml.exporter.loaded import Loaded
from deployml.runtime.errors import UnsupportedError

AXES = {0: "batch", 1: "sequence"}


def _masked(module: torch.nn.Module) -> Loaded:
    inputs = (torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.int64))
    return Loaded(module.eval(), "module", type(module).__name__, inputs, {}, {"x": AXES, "mask": AXES})


class RareFeature(torch.nn.Module):
    """Branches on something that ordinary masks never show."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = x * mask[..., None]
        if (mask > 1).any().item():
            y = y * 5
        return y


class MaskBranch(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if (mask == 0).any():
            return x * mask[..., None]
        return x


def test_a_branch_that_never_differs_is_assumed_and_said() -> None:
    captured = capture(_masked(RareFeature()))
    assert [note for note in captured.notes if "(mask > 1).any()" in note and "gives False" in note]


class MaskDoubles(torch.nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if (mask == 0).any():
            return x * 2
        return x


def test_a_branch_that_only_saves_work_is_left_out() -> None:
    captured = capture(_masked(MaskBranch()))
    assert [note for note in captured.notes if "leaves the shortcuts out" in note]


def test_a_branch_that_differs_for_other_masks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="values of a tensor"):
        capture(_masked(MaskDoubles()))
