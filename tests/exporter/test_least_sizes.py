"""Speech models: lengths counted by ``int``, and nothing to compare or to time below some hundred samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import deployml
from deployml.exporter.artifact import Artifact


class Speech(torch.nn.Module):
    """Two convolutions over samples, then attention over the frames that no padding covers."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = torch.nn.Conv1d(1, 16, 140, stride=20)
        self.fewer = torch.nn.Conv1d(16, 16, 3, stride=2)
        self.qkv = torch.nn.Linear(16, 48)

    def forward(self, samples: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        x = self.fewer(self.frames(samples[:, None]).tanh()).transpose(1, 2)
        count = int((keep.shape[1] - 140) / 20 + 1)
        count = int((count - 3) / 2 + 1)
        real = keep[:, ::40][:, :count].bool()
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, real[:, None, None])
        return y.transpose(1, 2).flatten(2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    torch.manual_seed(0)
    keep = torch.ones(2, 400, dtype=torch.long)
    keep[1, 250:] = 0
    axes = {0: "batch", 1: "length"}
    output = tmp_path_factory.mktemp("speech") / "m.onnx"
    inputs = (torch.randn(2, 400), keep)
    return deployml.export(Speech().eval(), inputs, output=output, dynamic_shapes=(axes, axes), html=False)


def test_a_length_counted_by_int_stays_one(exported: Artifact) -> None:
    assert [site.status for site in exported.report.sites] == ["fused"]
    assert not exported.report.warnings


def test_it_is_compared_at_lengths_with_several_frames(exported: Artifact) -> None:
    parity = exported.report.parity
    assert parity is not None and parity.verdict == "pass"
    assert {compared.verdict for compared in parity.comparisons} == {"pass"}
    frames = {compared.shape[1] for compared in parity.comparisons}
    assert len(frames) > 3 and min(frames) == 1


def test_its_file_is_checked_validated_and_timed_at_such_lengths(exported: Artifact) -> None:
    plain = exported.path.with_name("m.unfused.onnx")
    deployml.lock(exported.path)
    found = deployml.check(exported.path, against=plain)
    assert found.verdict == "pass" and found.not_run.keys() == {"latency"}
    assert "loads and runs without NaN (length from 180 on, as it takes no less)" in found.checked
    assert deployml.validate(exported.path, against=plain).verdict == "pass"
    timed = deployml.bench(exported.path, seconds=0.2).latency
    assert timed is not None and timed.shapes["samples"] == (1, 180 + 127 * 45)


def test_an_example_of_a_single_frame_will_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    axes = {0: "batch", 1: "length"}
    inputs = (torch.randn(2, 200), torch.ones(2, 200, dtype=torch.long))
    made = deployml.export(Speech().eval(), inputs, output=tmp_path / "m.onnx", dynamic_shapes=(axes, axes), html=False)
    assert made.report.parity is not None and made.report.parity.verdict == "pass"
    assert len({compared.shape[1] for compared in made.report.parity.comparisons}) > 1


def test_a_file_of_unknown_origin_is_compared_there_too(exported: Artifact, tmp_path: Path) -> None:
    plain = exported.path.with_name("m.unfused.onnx")
    report = deployml.optimize(plain, output=tmp_path / "o.onnx", html=False).report
    assert report.parity is not None and {c.verdict for c in report.parity.comparisons} == {"pass"}
