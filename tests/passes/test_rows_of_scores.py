"""Masks that are written beside scores whose rows of all heads stand in one axis, (B * N * S, T)."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import deployml


class Lengths(nn.Module):
    """Keys beyond a length of each sequence are masked row by row, as lessons on attention write it."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        torch.manual_seed(5)
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        batch, size = x.shape[:2]
        q, k, v = self.qkv(x).view(batch, size, 3, 4, 8).permute(2, 0, 3, 1, 4)
        if self.form != "heads apart":
            q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        scores = q @ k.mT / 8**0.5
        keep = torch.arange(size)[None] < lengths.repeat_interleave(4 * size)[:, None]
        rows = scores.flatten(0, -2)
        if self.form == "bias":
            scores = (rows + torch.where(keep, 0.0, -3.0)).view_as(scores) + torch.eye(size)
        else:
            rows[~keep] = -1e6
            scores = rows.view_as(scores)
        heads = scores.softmax(-1) @ v
        return heads.view(batch, 4, size, 8).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("form", ["heads joined", "heads apart", "bias"])
def test_the_mask_is_one_of_the_attention(form: str, tmp_path: Path) -> None:
    given = (torch.randn(3, 6, 32), torch.tensor([6, 2, 4]))
    batch = torch.export.Dim("batch")
    made = deployml.export(
        Lengths(form).eval(),
        given,
        output=tmp_path / "rows.onnx",
        dynamic_shapes=({0: batch, 1: torch.export.Dim("size")}, {0: batch}),
        html=False,
    )
    (site,) = made.report.sites
    assert site.status == "fused" and "bias" in site.op
    assert made.report.parity.verdict == "pass"
    products = [node for node in ir.load(made.path).graph.all_nodes() if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 1  # the projection
