"""Models that find their padding in the ids: what is drawn for the checks begins no row with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import deployml
from deployml.exporter.feeding import input_specs, parity_cases

PADDING = 0


class Decoder(nn.Module):
    """Causal attention among ids that are not padding, forbidden by a finite number as people write it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(3, 32)
        self.packed, self.head = nn.Linear(32, 96), nn.Linear(32, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        b, s = ids.shape
        q, k, v = self.packed(self.table(ids)).view(b, s, 3, 4, 8).permute(2, 0, 3, 1, 4)
        keep = (ids != PADDING)[:, None, None, :] & torch.ones(s, s, dtype=torch.bool).tril()
        scores = (q @ k.transpose(-1, -2) * 8**-0.5).masked_fill(~keep, -1e9)
        return self.head((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, 32))


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> deployml.Artifact:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("seq")},)
    path: Path = tmp_path_factory.mktemp("padding") / "m.onnx"
    ids = torch.tensor([[2, 1, 2, 1, 0], [1, 2, 0, 0, 0]])
    return deployml.export(Decoder().eval(), (ids,), output=path, dynamic_shapes=shapes, html=False)


def test_rows_without_a_key_fail_no_verdict(artifact: deployml.Artifact) -> None:
    (site,) = artifact.report.sites
    assert site.status == "fused" and "fully-masked-rows" in site.assumptions
    assert artifact.report.parity is not None and artifact.report.parity.verdict == "pass", artifact.report.parity


def test_padding_is_drawn_anywhere_but_first(artifact: deployml.Artifact) -> None:
    (spec,) = input_specs(ir.load(artifact.unfused))
    assert spec.marks == (PADDING,)
    drawn = [case.feeds["ids"] for case in parity_cases([spec])]
    assert all((ids[:, 0] != PADDING).all() for ids in drawn)
    assert np.concatenate([ids[:, 1:].ravel() == PADDING for ids in drawn]).any()
