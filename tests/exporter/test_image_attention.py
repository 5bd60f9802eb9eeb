"""Attention between the pixels of an image (B, C, H, W)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import deployml

WIDTH, SIZE, SIDE = 16, 8, 4
BATCH, ROWS, COLUMNS = torch.export.Dim("batch"), torch.export.Dim("rows"), torch.export.Dim("columns")


class OneHead(nn.Module):
    """One head whose query, key and value are feature maps: channels first, and no axis of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(WIDTH, 4 * SIZE, 1)
        self.bias = nn.Parameter(torch.randn(SIDE * SIDE, SIDE * SIDE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.flatten(2) for t in self.project(x).split([SIZE, SIZE, 2 * SIZE], dim=1))
        weights = self.scores(q * SIZE**-0.5, k).softmax(dim=-1)
        return (v @ weights.mT).unflatten(2, x.shape[2:])

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q.mT @ k


class OneHeadBiased(OneHead):
    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q.mT @ k + self.bias


@pytest.mark.parametrize(
    ("kind", "axes"),
    [(OneHead, {0: BATCH}), (OneHeadBiased, {0: BATCH}), (OneHead, {0: BATCH, 2: ROWS, 3: COLUMNS})],
    ids=["fixed", "biased", "free"],
)
def test_a_single_head_between_pixels_is_fused(kind: type[OneHead], axes: dict[int, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, WIDTH, SIDE, SIDE)
    artifact = deployml.export(kind().eval(), (x,), output=tmp_path / "m.onnx", dynamic_shapes=(axes,), html=False)
    (site,) = artifact.report.sites
    assert (site.status, site.reason) == ("fused", None)
    assert site.facts["heads"] == 1
    assert artifact.report.verdict == "pass"


class InPlace(OneHead):
    """Scores to which a bias for rows and one for columns are added where they lie."""

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = q.mT @ k
        grid = scores[:, 0:, 0:].view(-1, SIDE * SIDE, SIDE, SIDE)
        scores[:, 0:, 0:] = (grid + self.bias[:, :SIDE, None] + self.bias[:, None, :SIDE]).flatten(2)
        return scores


class BesideToken(OneHead):
    """The same behind a class token, whose scores have no bias."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.flatten(2) for t in self.project(x).split([SIZE, SIZE, 2 * SIZE], dim=1))
        q, k, v = (torch.cat([t.mean(dim=2, keepdim=True), t], dim=2) for t in (q, k, v))
        return v @ self.scores(q, k).softmax(dim=-1).mT

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = q.mT @ k
        rows = (q.mT[:, 1:] @ self.bias[:SIZE, :SIDE]).unflatten(1, (SIDE, SIDE))
        grid = scores[:, 1:, 1:].view(-1, SIDE, SIDE, SIDE, SIDE)
        scores[:, 1:, 1:] = (grid + rows[..., None] + self.bias[:SIDE, :SIDE]).view(-1, SIDE * SIDE, SIDE * SIDE)
        scores[:, :, 1:] += self.bias[0]
        return scores


@pytest.mark.parametrize("kind", [InPlace, BesideToken], ids=lambda kind: kind.__name__)
def test_a_bias_written_into_the_scores_is_one(kind: type[OneHead], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, WIDTH, SIDE, SIDE)
    module = kind().eval()
    artifact = deployml.export(module, (x,), output=tmp_path / "m.onnx", dynamic_shapes=({0: BATCH},), html=False)
    (site,) = artifact.report.sites
    assert (site.status, site.reason, site.facts["bias"]["mask"]) == ("fused", None, "bias")
    assert artifact.report.verdict == "pass"
