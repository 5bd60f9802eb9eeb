"""A relative position term that is a product of its own beside the score product (Shaw et al., 2018)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import deployml

WIDTH, HEADS, SIZE, REACH = 32, 4, 8, 16


class Shaw(nn.Module):
    """Distances join the scores, and with ``on_values`` the weighted values too."""

    def __init__(self, on_values: bool) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.distances = nn.Embedding(2 * REACH + 1, SIZE)
        self.on_values = on_values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).view(*x.shape[:2], HEADS, SIZE).transpose(1, 2) for p in self.projections)
        at = torch.arange(x.shape[1])
        relative = self.distances((at[None] - at[:, None]).clamp(-REACH, REACH) + REACH)
        weights = ((q @ k.mT + torch.einsum("bnqd,qkd->bnqk", q, relative)) / SIZE**0.5).softmax(-1)
        result = weights @ v
        if self.on_values:
            result = result + torch.einsum("bnqk,qkd->bnqd", weights, relative)
        return result.transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("on_values", [False, True])
def test_it_is_a_bias(on_values: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},)
    x = torch.randn(2, 12, WIDTH)
    artifact = deployml.export(
        Shaw(on_values).eval(), (x,), output=tmp_path / "m.onnx", dynamic_shapes=shapes, html=False
    )
    (site,) = artifact.report.sites
    assert site.status == "fused" and "bias" in site.op
    assert artifact.report.verdict == "pass"
