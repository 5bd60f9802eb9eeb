"""Latent attention with its projections absorbed: scores of (B, S, N, T) over keys that all heads share."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import torch
from torch import nn
from torch.testing import assert_close

import deployml
from deployml import custom_ops

HEADS, SIZE, LATENT, TURNED = 2, 8, 6, 4


class Absorbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(16, HEADS * (SIZE + TURNED))
        self.latent = nn.Linear(16, LATENT + TURNED)
        self.up = nn.Linear(LATENT, HEADS * 2 * SIZE, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, q_turned = self.query(x).view(batch, length, HEADS, -1).split([SIZE, TURNED], -1)
        latent, k_turned = self.latent(x).split([LATENT, TURNED], -1)
        up = self.up.weight.view(HEADS, -1, LATENT)
        q = torch.einsum("bshd,hdc->bshc", q, up[:, :SIZE])
        scores = torch.einsum("bshc,btc->bsht", q, latent) + torch.einsum("bshr,btr->bsht", q_turned, k_turned)
        scores = scores * (SIZE + TURNED) ** -0.5 + torch.full((length, length), float("-inf")).triu(1).unsqueeze(1)
        read = torch.einsum("bsht,btc->bshc", scores.softmax(-1), latent)
        return torch.einsum("bshc,hdc->bshd", read, up[:, -SIZE:]).flatten(2)


def test_it_is_one_attention_that_equals_eager(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Absorbed().eval(), torch.randn(3, 5, 16)
    axes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}
    artifact = deployml.export(
        model, (x,), output=tmp_path / "m.onnx", dynamic_shapes=axes, validate=False, html=False, cpu_isa="avx2"
    )
    (site,) = artifact.report.sites
    assert (site.status, site.detail) == ("fused", None)
    assert site.facts["heads"] == HEADS
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    for sizes in ((1, 1), (4, 9)):
        x = torch.randn(*sizes, 16)
        with torch.no_grad():
            assert_close(torch.from_numpy(session.run(None, {"x": x.numpy()})[0]), model(x), rtol=0, atol=1e-5)
