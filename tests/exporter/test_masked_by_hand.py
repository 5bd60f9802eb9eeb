"""Masks and softmaxes as people write them by hand: each becomes one fused attention that equals eager."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import deployml
from deployml import custom_ops

WIDTH, HEADS = 16, 2


class Layer(nn.Module):
    """One attention; how its weights are made is given."""

    def __init__(self, weigh: Callable[[Layer, torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weigh = weigh
        self.projections = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("triangle", torch.tril(torch.ones(32, 32))[None, None])
        self.sinks = nn.Parameter(torch.tensor([0.5, -0.5]))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (p(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2) for p in self.projections)
        weights = self.weigh(self, q @ k.mT / math.sqrt(q.shape[-1]), mask)
        return (weights @ v).transpose(1, 2).flatten(2)


class Layers(nn.Module):
    def __init__(self, ways: list[Callable[..., torch.Tensor]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(map(Layer, ways))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x, mask) for layer in self.layers]


def multiplied(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    b = layer.triangle[:, :, : scores.shape[2], : scores.shape[3]]
    return (scores * b - 1e10 * (1 - b)).softmax(-1)


def multiplied_by_a_flag(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    keep = mask[:, None, None]
    return (scores * keep + ~keep * -1e9).softmax(-1)


def dead_rows(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    keep = mask[:, None, None] & mask[:, None, :, None]
    dead = ~keep.any(-1, keepdim=True)
    scores = scores.masked_fill(~keep, -math.inf).masked_fill(dead, 0.0)
    return scores.softmax(-1).masked_fill(dead, 0.0)


def blank_rows(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = scores.masked_fill(~mask[:, None, None], -math.inf).softmax(-1)
    return torch.where(mask[:, None, :, None], weights, 0.0)


def sum_without_its_axis(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    powers = (scores - scores.max(-1).values.unsqueeze(-1)).exp()
    return powers / powers.sum(-1)[..., None]


def sink_in_front(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    sink = layer.sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    return torch.cat([sink, scores], -1).softmax(-1).narrow(-1, 1, scores.shape[3])


def sink_behind(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    sink = layer.sinks.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., : scores.shape[3]]


def rows_without_zeros(layer: Layer, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(~mask[:, None, :, None], 0.0).softmax(-1)


FUSED = [
    multiplied,
    multiplied_by_a_flag,
    dead_rows,
    blank_rows,
    sum_without_its_axis,
    sink_in_front,
    sink_behind,
]


def _padded(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.randint(1, length + 1, (batch, 1), generator=generator)
    return torch.randn(batch, length, WIDTH, generator=generator), torch.arange(length)[None] < lengths


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layers, deployml.Artifact]:
    torch.manual_seed(0)
    model = Layers([*FUSED, rows_without_zeros]).eval()
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=32)
    axes = {"x": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    path: Path = tmp_path_factory.mktemp("hand") / "m.onnx"
    return model, deployml.export(
        model, _padded(2, 5), output=path, dynamic_shapes=axes, validate=False, html=False, cpu_isa="avx2"
    )


@pytest.mark.parametrize("way", range(len(FUSED)), ids=[f.__name__ for f in FUSED])
def test_it_is_fused(exported: tuple[Layers, deployml.Artifact], way: int) -> None:
    (site,) = (s for s in exported[1].report.sites if s.module_path == f"layers.{way}")
    assert (site.status, site.reason, site.detail) == ("fused", None, None)


def test_rows_set_to_a_number_keep_their_weights(exported: tuple[Layers, deployml.Artifact]) -> None:
    (site,) = (s for s in exported[1].report.sites if s.module_path == f"layers.{len(FUSED)}")
    assert (site.status, site.reason) == ("declined", "mask-fill")


@pytest.mark.parametrize("sizes", [(1, 1), (4, 9)])
def test_every_form_equals_eager(exported: tuple[Layers, deployml.Artifact], sizes: tuple[int, int]) -> None:
    model, artifact = exported
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    x, mask = _padded(*sizes)
    found = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})
    with torch.no_grad():
        expected = model(x, mask)
    for name, (one, other) in zip(
        [*(f.__name__ for f in FUSED), "rows"], zip(found, expected, strict=True), strict=True
    ):
        assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
