"""Weights that a mask sets to zero, rows of them or keys, before or after they are divided by their sum."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deployml
from deployml.passes.attention import RECOGNISE

from .rewriting import declined, parsed, rewrite

Weigh = Callable[[Tensor, Tensor], Tensor]


def _exponentials(scores: Tensor, keep: Tensor) -> Tensor:
    e = torch.exp(scores - scores.amax(-1, keepdim=True)) * keep
    return e / e.sum(-1, keepdim=True).clamp(min=1e-9)


def _bare_exponentials(scores: Tensor, keep: Tensor) -> Tensor:
    e = scores.exp() * keep.float()
    return e / (e.sum(-1, keepdim=True) + 1e-9)


def _again(scores: Tensor, keep: Tensor) -> Tensor:
    p = scores.softmax(-1) * keep
    return p / (p.sum(-1, keepdim=True) + 1e-13)


def _rows(scores: Tensor, keep: Tensor) -> Tensor:
    none = keep.logical_not().all(-1, keepdim=True)
    return scores.masked_fill(~keep, -math.inf).softmax(-1).masked_fill(none, 0.0)


def _rows_twice(scores: Tensor, keep: Tensor) -> Tensor:
    none = keep.logical_not().all(-1, keepdim=True)
    scores = scores.masked_fill(~keep, -math.inf).masked_fill(none, 0.0)
    return torch.where(none.logical_not(), scores.softmax(-1), 0.0)


class Weighed(nn.Module):
    """Causal attention with padding, whose weights are made by a function of scores and mask."""

    def __init__(self, weigh: Weigh) -> None:
        super().__init__()
        self.weigh = weigh
        torch.manual_seed(5)
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, size = x.shape[:2]
        q, k, v = self.qkv(x).view(batch, size, 3, 4, 8).permute(2, 0, 3, 1, 4)
        keep = mask.bool()[:, None, None] & torch.ones(size, size, dtype=torch.bool).tril()
        return (self.weigh(q @ k.mT / 8**0.5, keep) @ v).transpose(1, 2).flatten(2)


FORMS = [_exponentials, _bare_exponentials, _again, _rows, _rows_twice]


@pytest.mark.parametrize("weigh", FORMS, ids=lambda f: f.__name__.strip("_"))
def test_they_are_fused_and_rows_without_keys_are_zero(weigh: Weigh, tmp_path: Path) -> None:
    model, (batch, size) = Weighed(weigh).eval(), torch.export.dims("batch", "size")
    made = deployml.export(
        model,
        (torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.long)),
        output=tmp_path / "weighed.onnx",
        dynamic_shapes=({0: batch, 1: size},) * 2,
        html=False,
    )
    (site,) = made.report.sites
    assert site.status == "fused", site
    x, mask = torch.randn(3, 5, 32), torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    (given,) = deployml.session(made.path).run(None, {"x": x.numpy(), "mask": mask.numpy()})
    wanted = model(x, mask).detach().numpy()
    assert not wanted[1, :2].any() and not wanted[2].any()
    np.testing.assert_allclose(given, wanted, atol=2e-6)


def _masked(body: str, mask: str = "bool[B,1,S,T] m", scores: str = "s = MatMul (q, kt)") -> list[str]:
    text = f"kt = Transpose <perm = [0, 1, 3, 2]> (k) {scores} p = Softmax <axis = -1> (s) {body} y = MatMul (w, k)"
    inputs = f"float[B,4,S,8] q, float[B,4,T,8] k, float[8,T] r, {mask}"
    constants = "int64[1] last = {-1}, int64[1] third = {2}, float zero = {0}"
    constants += ", float little = {1e-12}, float much = {0.01}"
    model = parsed(inputs, "float[B,4,S,8] y", body=text, constants=constants)
    journal = rewrite(model, RECOGNISE)
    return [] if any(n.op_type == "Attention" for n in model.graph) else declined(journal)


_SUM = "f = Where (m, p, zero) t = ReduceSum (f, last) w = Div (f, t)"


def test_masked_weights_over_their_own_sum_are_a_softmax() -> None:
    assert _masked(_SUM) == []
    assert _masked(_SUM.replace("Div (f, t)", "Div (f, u)").replace("w =", "u = Max (little, t) w =")) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (_SUM.replace("(f, last)", "(p, last)"), "weights-changed"),
        (_SUM.replace("last", "third"), "softmax-axis"),
        (_SUM.replace("Div (f, t)", "Div (f, u)").replace("w =", "u = Add (t, much) w ="), "softmax-term"),
        (_SUM.replace("Div (f, t)", "Div (f, u)").replace("w =", "u = Max (t, much) w ="), "softmax-term"),
        (_SUM.replace("(m, p, zero)", "(m, p, much)"), "weights-changed"),
    ],
    ids=["sum of the unmasked", "other axis", "large addend", "large bound", "filled with a number"],
)
def test_what_is_no_softmax_under_a_mask_stays(body: str, reason: str) -> None:
    assert reason in _masked(body)


def test_rows_that_keep_a_number_are_no_blank() -> None:
    assert _masked("w = Where (m, p, zero)", "bool[B,1,S,1] m") == []
    assert "weights-changed" in _masked("w = Where (m, p, much)", "bool[B,1,S,1] m")
    assert "weights-changed" in _masked("w = Where (m, p, zero)", "bool[B,1,1,T] m")
