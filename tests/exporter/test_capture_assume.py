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


class PaddingOfIds(torch.nn.Module):
    """Finds padding among its ids, and drops the mask where there is none, as fairseq's models do."""

    def __init__(self, otherwise: float = 0.0) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.otherwise = otherwise

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        padding = ids.eq(1)
        if not padding.any():
            padding = None
            x = x + self.otherwise
        scores = x @ x.transpose(1, 2)
        if padding is not None:
            scores = scores.masked_fill(padding[:, None], -1e9)
        return scores.softmax(-1) @ x


def _ids(module: torch.nn.Module) -> Loaded:
    ids = torch.arange(2, 17).reshape(3, 5)
    return Loaded(module.eval(), "module", type(module).__name__, (ids,), {}, {"ids": AXES})


def test_padding_that_the_example_lacks_is_looked_for() -> None:
    module = PaddingOfIds()
    captured = capture(_ids(module))
    assert not [note for note in captured.notes if "assumes" in note]
    ids = torch.tensor([[5, 7, 1, 1, 1, 1], [3, 4, 5, 6, 7, 8]])
    found = captured.program.module()(ids)
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, module(ids))


def test_a_branch_on_padding_that_means_something_stays_an_assumption() -> None:
    captured = capture(_ids(PaddingOfIds(otherwise=1.0)))
    [note] = [note for note in captured.notes if "if not padding.any()" in note]
    assert "gives False, as it did for the example and every varied input tried without 1 among its ids;" in note
    assert note.endswith("It gave True with 1 among them.")


class AlsoMasked(PaddingOfIds):
    """Looks for another number too, which changes no answer."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * ids.ne(3).sum().clamp(1, 1)


def test_only_the_number_that_gives_the_other_answer_is_named() -> None:
    captured = capture(_ids(AlsoMasked(otherwise=1.0)))
    [note] = [note for note in captured.notes if "if not padding.any()" in note]
    assert "without 1 among its ids;" in note
