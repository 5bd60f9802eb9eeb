"""Half-precision attention whose product of query and key is taken in float32, as "upcast" options of models do."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import deployml


class Upcast(nn.Module):
    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.packed = nn.Linear(32, 96)
        self.biased = biased
        self.register_buffer("slopes", torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, _ = x.shape
        q, k, v = self.packed(x).view(b, s, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q.float() @ k.float().transpose(-1, -2)) * 8**-0.5
        if self.biased:
            at = torch.arange(s, dtype=torch.float32)
            scores = scores - self.slopes.float() * (at[:, None] - at).abs()
        scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), float("-inf"))
        return (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(b, s, 32)


@pytest.mark.parametrize(
    ("dtype", "target", "biased", "packed"),
    [
        (torch.float16, "cpu", False, True),
        (torch.float16, "cpu", True, False),
        (torch.bfloat16, "cuda", False, False),
        (torch.bfloat16, "cuda", True, False),
    ],
)
def test_it_is_one_attention(dtype: torch.dtype, target: str, biased: bool, packed: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Upcast(biased).eval().to(dtype), torch.randn(2, 12, 32, dtype=dtype)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},)
    path = tmp_path / "m.onnx"
    on_cpu = target == "cpu"
    artifact = deployml.export(
        model, (x,), output=path, dynamic_shapes=shapes, target=target, validate=on_cpu, html=False
    )
    (site,) = artifact.report.sites
    assert (site.status, site.reason) == ("fused", None)
    assert not on_cpu or artifact.report.verdict == "pass"
    nodes = [node.op_type for node in onnx.load(path).graph.node]
    assert "Softmax" not in nodes
    if packed:  # nothing is widened: the operator adds up in float32
        assert "Cast" not in nodes and "FlashAttention_packed" in nodes
