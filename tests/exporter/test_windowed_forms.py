"""Attention whose windows or chunks have no fixed number, and masks made by ``torch.nn.attention.bias``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as attend

import deployml

WIDTH, HEADS, WINDOW = 32, 4, 4


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value, each (B, N, S, H)."""
        return [p(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for p in self.projections]

    def windows(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value of one head, each (B, W, S, D)."""
        return [p(x).reshape(x.shape[0], -1, WINDOW, WIDTH) for p in self.projections]


class OneHead(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.windows(x)
        return ((q @ k.mT / WIDTH**0.5).softmax(-1) @ v).reshape(x.shape)


class OneHeadMasked(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        keep = (x[..., 0] > -0.5).reshape(x.shape[0], -1, 1, WINDOW)
        return attend(*self.windows(x), attn_mask=keep).reshape(x.shape)


class ChunksBehindHeads(Projected):
    size = WIDTH // HEADS

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q, k, v = (t.reshape(b, HEADS, s // WINDOW, WINDOW, self.size) for t in self.heads(x))
        return attend(q, k, v, is_causal=True).reshape(b, HEADS, s, -1).transpose(1, 2).reshape(x.shape)


class SizeInferred(ChunksBehindHeads):
    size = -1


class LowerRight(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        q = q[:, :, 2:]
        return attend(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]))


class UpperLeft(Projected):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.heads(x)
        return attend(q, k, v, attn_mask=causal_upper_left(q.shape[2], k.shape[2]))


@pytest.mark.parametrize(
    "kind",
    [OneHead, OneHeadMasked, ChunksBehindHeads, SizeInferred, LowerRight, UpperLeft],
    ids=lambda kind: kind.__name__,
)
def test_it_is_one_attention(kind: type[Projected], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16, WIDTH)
    shapes = ({0: torch.export.Dim("batch"), 1: WINDOW * torch.export.Dim("windows")},)
    artifact = deployml.export(kind().eval(), (x,), output=tmp_path / "m.onnx", dynamic_shapes=shapes, html=False)
    (site,) = artifact.report.sites
    assert (site.status, site.reason) == ("fused", None)
    assert artifact.report.verdict == "pass"
    if kind is UpperLeft:
        assert site.facts["causal"] is True
