"""Sizes that a model computes, and that are 1 in the examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deployml.exporter.capture import capture, check_dynamic
from deployml.exporter.capture.ones import fixed_equations
from deployml.exporter.loaded import Loaded
from deployml.runtime.errors import UnsupportedError


class Frames(torch.nn.Module):
    """Attention over the frames of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.frames, self.qkv = torch.nn.Conv1d(1, 8, 10, stride=4), torch.nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frames(x[:, None]).transpose(1, 2)
        q, k, v = self.qkv(x).chunk(3, -1)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


class Blocks(torch.nn.Module):
    """Positions padded to whole blocks of 8, each block attended to alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        padded = torch.nn.functional.pad(x, (0, 0, 0, -length % 8)).view(batch, -1, 8, width)
        scores = (padded @ padded.transpose(-2, -1)).softmax(-1)
        return (scores @ padded).flatten(1, 2)[:, :length]


def _loaded(module: torch.nn.Module, *shape: int, **dims: Any) -> Loaded:
    axes = {"x": {0: "batch", 1: dims.get("length", "length")}}
    return Loaded(module.eval(), "module", type(module).__name__, (torch.randn(*shape),), {}, axes)


@pytest.mark.parametrize(("module", "shape"), [(Frames(), (3, 11)), (Blocks(), (3, 5, 4))])
def test_a_single_frame_or_block_stays_one_of_many(module: torch.nn.Module, shape: tuple[int, ...]) -> None:
    loaded = _loaded(module, *shape)
    captured = capture(loaded)
    assert not [size for size, value in fixed_equations(captured.program) if value == 1]
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "length"}}
    assert check_dynamic(loaded, captured) == ()


class OtherwiseInOneBlock(torch.nn.Module):
    """Does something else up to 32 positions, so at no size near the given one, at no smaller one, no whole block."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        if ((x.shape[1] + 3) // 4 + 7) // 8 == 1:
            y = y * 3
        return y


def test_a_branch_on_a_computed_size_is_found_with_its_line() -> None:
    loaded = _loaded(OtherwiseInOneBlock(), 3, 5, 4)
    with pytest.raises(UnsupportedError, match="does not hold at batch=3, length=") as caught:
        check_dynamic(loaded, capture(loaded))
    assert "y = y * 3" in caught.value.message


def test_declared_bounds_within_which_it_is_one_hold() -> None:
    loaded = _loaded(Blocks(), 3, 5, 4, length=torch.export.Dim("length", min=2, max=8))
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
