"""New tokens behind cached keys: causality aligned to the last key is said by attributes, and no mask is made."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

import deployml

WIDTH, HEADS, SIZE = 32, 4, 8


class BehindPast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: torch.Tensor, past_key: torch.Tensor, past_value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (p(x).view(*x.shape[:2], HEADS, SIZE).transpose(1, 2) for p in self.projections)
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        return self.attend(q, k, v).transpose(1, 2).reshape(x.shape), k, v


class Boolean(BehindPast):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows, keys = q.shape[2], k.shape[2]
        return attend(q, k, v, attn_mask=torch.ones(rows, keys, dtype=torch.bool).tril(keys - rows))


class Additive(BehindPast):
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        rows, keys = q.shape[2], k.shape[2]
        low = torch.full((rows, keys), torch.finfo(q.dtype).min).triu(keys - rows + 1)
        return (q @ k.mT / SIZE**0.5 + low).softmax(-1) @ v


class UpperLeft(BehindPast):
    """Aligned to the first key: the past beyond a row's own place is not seen."""

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attend(q, k, v, attn_mask=torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril())


@pytest.mark.parametrize("kind", [Boolean, Additive, UpperLeft], ids=lambda kind: kind.__name__)
def test_the_alignment_of_causality_is_kept(kind: type[BehindPast], tmp_path: Path) -> None:
    torch.manual_seed(0)
    batch, new, past = (torch.export.Dim(name) for name in ("batch", "new", "past"))
    cache = torch.randn(2, HEADS, 7, SIZE)
    shapes = ({0: batch, 1: new}, {0: batch, 2: past}, {0: batch, 2: past})
    path = tmp_path / "m.onnx"
    artifact = deployml.export(
        kind().eval(), (torch.randn(2, 5, WIDTH), cache, cache.clone()), output=path, dynamic_shapes=shapes, html=False
    )
    (site,) = artifact.report.sites
    assert site.status == "fused" and artifact.report.verdict == "pass"
    (node,) = (n for n in onnx.load(path).graph.node if n.op_type.startswith("FlashAttention"))
    said = {a.name: a.i for a in node.attribute if a.name in ("causal", "lower_right")}
    if kind is UpperLeft:
        assert said["lower_right"] == 0
    else:
        assert said == {"causal": 1, "lower_right": 1}
        assert len(node.input) == 3
