"""Tests of checking a captured program at sizes it was not traced at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deployml.exporter.capture import capture, check_dynamic
from deployml.exporter.capture.inputs import examples_of
from deployml.exporter.capture.replay import Replay
from deployml.exporter.loaded import Loaded
from deployml.runtime.errors import InputError, UnsupportedError

AXES = {"x": {0: "batch", 1: "sequence"}}


def _load(module: torch.nn.Module, *args: Any, axes: Any = AXES) -> Loaded:
    return Loaded(module.eval(), "module", type(module).__name__, args, {}, axes)


def _refusal(loaded: Loaded, finding: str | None = None) -> UnsupportedError:
    """What checking says of a program that does not hold."""
    captured = capture(loaded)
    with pytest.raises(UnsupportedError, match=finding) as caught:
        check_dynamic(loaded, captured)
    return caught.value


class LongBranch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        if x.shape[1] > 4:
            y = y * 3
        return y


def test_a_branch_on_a_size_is_found_with_its_line() -> None:
    loaded = _load(LongBranch(), torch.randn(3, 5, 8))
    refusal = _refusal(loaded, "batch=1, sequence=1")
    assert "y = y * 3" in refusal.message
    assert refusal.where is not None and "test_capture_check.py:" in refusal.where


@pytest.mark.parametrize("hint", [torch.export.Dim.AUTO, torch.export.Dim.DYNAMIC])
def test_axes_without_a_name_are_checked(hint: Any) -> None:
    loaded = _load(LongBranch(), torch.randn(3, 5, 8), axes={"x": {0: "batch", 1: hint}})
    refusal = _refusal(loaded, "batch=1, x_1=1")
    assert "y = y * 3" in refusal.message


class CausalMemory(torch.nn.Module):
    """Attends to a memory, with a causal mask wherever there is more than one query."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.memory = torch.nn.Parameter(torch.randn(1, 4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        memory = self.memory.expand(x.shape[0], -1, -1)
        causal = x.shape[1] > 1
        return torch.nn.functional.scaled_dot_product_attention(x, memory, memory, is_causal=causal)


def test_attention_that_is_causal_at_some_sizes_is_found_with_its_line() -> None:
    loaded = _load(CausalMemory(), torch.randn(3, 5, 8))
    refusal = _refusal(loaded, "batch=1, sequence=1")
    assert "is_causal=causal" in refusal.message


def test_declared_bounds_leave_the_other_branch_out() -> None:
    axes = {"x": {0: "batch", 1: torch.export.Dim("sequence", min=5)}}
    loaded = _load(LongBranch(), torch.randn(3, 6, 8), axes=axes)
    assert check_dynamic(loaded, capture(loaded)) == ()


class Windows(torch.nn.Module):
    """Pads to whole windows of 4 and cuts the padding off again, where there is any."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = (4 - x.shape[1] % 4) % 4
        if padding > 0:
            x = torch.nn.functional.pad(x, (0, 0, 0, padding))
        sums = x.reshape(x.shape[0], -1, 4, x.shape[2]).cumsum(2).reshape(x.shape)
        if padding > 0:
            sums = sums[:, :-padding]
        return sums


class LastBlock(torch.nn.Module):
    """Blanks what it padded the last block of 4 with, and forgets that there may be none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length, rest = x.shape[1], x.shape[1] % 4
        blocks = torch.nn.functional.pad(x, (0, 0, 0, (4 - rest) % 4)).reshape(x.shape[0], -1, 4, x.shape[2])
        if rest > 0:
            blocks = torch.cat([blocks[:, :-1], blocks[:, -1:] * (torch.arange(4) < rest)[:, None]], 1)
        return blocks.flatten(1, 2)[:, :length]


def test_a_branch_on_whole_blocks_is_found_with_its_line() -> None:
    loaded = _load(LastBlock(), torch.randn(2, 5, 6))
    refusal = _refusal(loaded, "sequence=4")
    assert "(torch.arange(4) < rest)" in refusal.message


@pytest.mark.parametrize("bounds", [{"max": 3}, {"min": 5, "max": 7}])
def test_whole_blocks_beyond_declared_bounds_are_not_tried(bounds: dict[str, int]) -> None:
    size = bounds["max"] - 1
    axes = {"x": {0: "batch", 1: torch.export.Dim("sequence", **bounds)}}
    loaded = _load(LastBlock(), torch.randn(2, size, 6), axes=axes)
    assert check_dynamic(loaded, capture(loaded)) == ()


@pytest.mark.parametrize("length", [3, 4, 8, 9])
def test_padding_that_is_cut_off_again_may_be_none(length: int) -> None:
    loaded = _load(Windows(), torch.randn(2, 5, 6))
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
    x = torch.randn(2, length, 6)
    (found,) = Replay(captured.program).outputs(examples_of(_load(Windows(), x)))
    torch.testing.assert_close(found, Windows()(x))


class BlockLoop(torch.nn.Module):
    """Attends within blocks of 4, one after the other, and hands a sum on: as MiniMax's linear attention does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks, state = [], torch.zeros(x.shape[0], 1, x.shape[2])
        for at in range((x.shape[1] + 3) // 4):
            block = x[:, at * 4 : (at + 1) * 4]
            blocks.append(torch.nn.functional.scaled_dot_product_attention(block, block, block) + state)
            state = state + block.sum(1, keepdim=True)
        return torch.cat(blocks, 1)


def test_a_loop_over_blocks_is_found_with_its_line() -> None:
    loaded = _load(BlockLoop(), torch.randn(2, 6, 8))
    refusal = _refusal(loaded, "sequence=9")
    assert "block = x[:, at * 4" in refusal.message
    assert "a loop over blocks is unrolled" in (refusal.hint or "")


class CutLoop(torch.nn.Module):
    """Goes over blocks of 4 and lays the result out by the size: what fails is the last line, not the loop."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        done = []
        for at in range((x.shape[1] + 3) // 4):
            block = x[:, at * 4 : (at + 1) * 4]
            done.append(block.cumsum(1))
        return torch.cat(done, 1).reshape(x.shape[0], x.shape[1], 2, -1)


def test_the_loop_is_named_where_a_later_line_fails() -> None:
    loaded = _load(CutLoop(), torch.randn(2, 6, 8))
    refusal = _refusal(loaded, "it fails")
    assert "block = x[:, at * 4 : (at + 1) * 4]" in refusal.message


class CausalAfterMask(torch.nn.Module):
    """Makes a mask that a single query does without, and attends causally to a memory unless there is one query."""

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        blank = None
        if x.shape[1] > 1:
            blank = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        x = torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=blank)
        causal = bool(x.shape[1] > 1)
        return torch.nn.functional.scaled_dot_product_attention(x, memory, memory, is_causal=causal)


def test_a_mask_that_changes_nothing_is_not_named() -> None:
    axes = {"x": {0: "batch", 1: "sequence"}, "memory": {0: "batch"}}
    loaded = _load(CausalAfterMask(), torch.randn(3, 5, 8), torch.randn(3, 4, 8), axes=axes)
    refusal = _refusal(loaded, "sequence=1")
    assert "is_causal=causal" in refusal.message


class BranchBefore(torch.nn.Module):
    """Takes a branch by the size; the lines after it are the same for all sizes, and are what differs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        if x.shape[1] > 4:
            y = y * 3
            y = y - 1
        place = torch.arange(x.shape[1])[:, None]
        return (y + place).tanh()


@pytest.mark.parametrize("length", [3, 6])
def test_the_branch_is_named_not_what_reads_it(length: int) -> None:
    loaded = _load(BranchBefore(), torch.randn(2, length, 8) / 8)
    refusal = _refusal(loaded)
    assert "y = y * 3" in refusal.message


def test_blocks_beyond_declared_bounds_are_not_tried() -> None:
    axes = {"x": {0: "batch", 1: torch.export.Dim("sequence", min=5, max=8)}}
    loaded = _load(BlockLoop(), torch.randn(2, 6, 8), axes=axes)
    assert check_dynamic(loaded, capture(loaded)) == ()


class Windowed(torch.nn.Module):
    """Looks at the last keys of a cache and the new ones alone, as sliding windows over a cache do."""

    def forward(self, x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (torch.cat([past, x], 1) * mask[..., None])[:, -3:].sum(1) + mask[:, :7].sum(1, keepdim=True)


def test_an_axis_that_is_a_sum_of_others_follows_them() -> None:
    axes = {
        "x": {0: "batch", 1: "length"},
        "past": {0: "batch", 1: "before"},
        "mask": {0: "batch", 1: "before + length"},
    }
    inputs = torch.randn(2, 4, 6), torch.randn(2, 5, 6), torch.ones(2, 9)
    loaded = _load(Windowed(), *inputs, axes=axes)
    assert check_dynamic(loaded, capture(loaded)) == ()


class FirstTokens(torch.nn.Module):
    """Cuts the axis at a number that means a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :7] * 2, x[:, 7:]], 1)


def test_a_cut_that_holds_beyond_it_is_none() -> None:
    loaded = _load(FirstTokens(), torch.randn(2, 5, 6))
    captured = capture(loaded)
    assert captured.dynamic_axes == AXES
    assert check_dynamic(loaded, captured) == ()


class Specially(torch.nn.Module):
    """Takes a way of its own at one size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1:3] == (8, 8):
            return x
        return x * 2


ROWS, COLUMNS = torch.export.Dim("rows"), torch.export.Dim("columns")
WAYS = [
    pytest.param({1: ROWS, 2: COLUMNS}, "rows=8, columns=8", id="named"),
    pytest.param({1: 4 * ROWS, 2: 4 * COLUMNS}, "rows=2, columns=2", id="derived"),
]


@pytest.mark.parametrize(("axes", "sizes"), WAYS)
def test_a_branch_at_the_given_sizes_alone_is_found_with_its_line(axes: dict[int, Any], sizes: str) -> None:
    loaded = _load(Specially(), torch.randn(2, 8, 8, 3), axes=(axes,))
    refusal = _refusal(loaded, sizes)
    assert "if x.shape[1:3] == (8, 8)" in refusal.message


@pytest.mark.parametrize("axes", [{1: ROWS, 2: COLUMNS}, {1: 4 * ROWS, 2: 4 * COLUMNS}])
def test_an_axis_that_the_given_size_fixes_is_traced_at_another(axes: dict[int, Any]) -> None:
    loaded = _load(Specially(), torch.randn(2, 8, 12, 3), axes=(axes,))
    captured = capture(loaded)
    traced = Replay(captured.program).outputs(examples_of(loaded).resized({"rows": 3, "columns": 5}))
    factor = 4 if axes[1] is not ROWS else 1
    assert traced[0].shape == (2, 3 * factor, 5 * factor, 3)
    assert check_dynamic(loaded, captured) == ()


def test_an_axis_derived_from_another_is_checked() -> None:
    loaded = _load(LongBranch(), torch.randn(3, 6, 8), axes=({1: 2 * torch.export.Dim("pairs")},))
    refusal = _refusal(loaded, "pairs=1")
    assert "y = y * 3" in refusal.message


def test_a_derived_axis_keeps_to_the_bounds_of_its_root() -> None:
    pairs = torch.export.Dim("pairs", min=3, max=5)
    loaded = _load(LongBranch(), torch.randn(3, 6, 8), axes=({1: 2 * pairs},))
    assert check_dynamic(loaded, capture(loaded)) == ()


@pytest.mark.parametrize("size", [7, 8])
def test_a_size_that_its_expression_does_not_make_is_refused(size: int) -> None:
    pairs = torch.export.Dim("pairs")
    loaded = Loaded(
        Sum().eval(), "module", "Sum", (torch.randn(3, 2), torch.randn(size, 2)), {}, ({0: pairs}, {0: 2 * pairs})
    )
    with pytest.raises(InputError, match=rf"'2\*pairs' is {size} in input 'y'"):
        examples_of(loaded)


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x)) + y
