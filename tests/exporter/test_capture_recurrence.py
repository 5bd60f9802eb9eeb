"""Linear attention: the gated delta rule is found by what a function computes, and kept whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deployml.exporter.capture import capture
from deployml.exporter.load import load
from deployml.exporter.translate import translate
from deployml.passes import pipeline
from deployml.runtime.target import Target

BATCH, LENGTH = torch.export.Dim("batch"), torch.export.Dim("length")


def delta_in_chunks(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk_size: int = 4
) -> tuple[Tensor, ...]:
    """The rule as training code writes it: a Python loop over chunks, whose number an export would bake in."""
    batch, length, heads, size = q.shape
    state = q.new_zeros(batch, heads, size, v.shape[-1])
    rows = []
    for first in range(0, length, chunk_size):
        for at in range(first, min(first + chunk_size, length)):
            state = state * g[:, at].exp()[..., None, None]
            answer = (state * k[:, at][..., None]).sum(-2)
            state = state + k[:, at][..., None] * ((v[:, at] - answer) * beta[:, at][..., None])[..., None, :]
            rows.append((state * (q[:, at] * size**-0.5)[..., None]).sum(-2))
    return torch.stack(rows, 1), state


def delta_that_forgets(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """Takes what the rule takes, and reads its own token alone."""
    own = (q * k).sum(-1, keepdim=True) * beta[..., None] * q.shape[-1] ** -0.5
    return own * v, (k[:, -1:].mT @ v[:, -1:]).flatten(1, 2)


def delta_by_channel(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    """Decay per key channel, (B, S, N, K)."""
    state, rows = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1]), []
    for at in range(q.shape[1]):
        state = state * g[:, at].exp()[..., None]
        answer = (state * k[:, at][..., None]).sum(-2)
        state = state + k[:, at][..., None] * ((v[:, at] - answer) * beta[:, at][..., None])[..., None, :]
        rows.append((state * (q[:, at] * q.shape[-1] ** -0.5)[..., None]).sum(-2))
    return torch.stack(rows, 1), state


class Mixer(nn.Module):
    """(batch, length, 12) through a linear attention of 2 heads with 4 key and 6 value channels."""

    def __init__(self, rule: Callable[..., Any], *, channels: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qk, self.v = nn.Linear(12, 16), nn.Linear(12, 12)
        self.decay, self.beta = nn.Linear(12, 8 if channels else 2), nn.Linear(12, 2)
        self.rule, self.channels = rule, channels

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.qk(x).unflatten(-1, (2, 2, 4)).unbind(2)
        g = -nn.functional.softplus(self.decay(x))
        g = g.unflatten(-1, (2, 4)) if self.channels else g
        k = nn.functional.normalize(k, dim=-1)
        return self.rule(q, k, self.v(x).unflatten(-1, (2, 6)), g, self.beta(x).sigmoid())[0].flatten(2)


def _fused(module: nn.Module, version: tuple[int, ...]) -> pipeline.Outcome:
    x = torch.randn(2, 7, 12)
    with load(module.eval(), kwargs={"x": x}, dynamic_shapes={"x": {0: BATCH, 1: LENGTH}}) as loaded:
        model = translate(capture(loaded), opset=21).model
    return pipeline.run(model, Target(name="cpu", onnxruntime=version, opset=21))


def _compare(module: nn.Module, model: ir.Model) -> None:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((1, 1), (3, 13)):
        x = torch.randn(*size, 12)
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("rule", "channels"), [(delta_in_chunks, False), (delta_by_channel, True)])
def test_a_delta_rule_becomes_one_operator_of_any_length(rule: Callable[..., Any], channels: bool) -> None:
    module = Mixer(rule, channels=channels)
    outcome = _fused(module, (1, 31, 1))
    assert [(s.status, s.op, s.origin) for s in outcome.journal.sites] == [
        ("fused", "com.microsoft::LinearAttention", "recurrence")
    ]
    assert module.rule is rule
    _compare(module, outcome.model)


def test_where_the_operator_is_missing_the_rule_is_a_scan_and_says_so() -> None:
    module = Mixer(delta_in_chunks)
    outcome = _fused(module, (1, 22))
    (site,) = outcome.journal.sites
    assert (site.status, site.reason, site.nearest) == ("declined", "no-capability", "LIN101")
    assert any(n.op_type == "Scan" for n in outcome.model.graph)
    _compare(module, outcome.model)


def test_a_function_that_computes_something_else_is_left_alone() -> None:
    module = Mixer(delta_that_forgets)
    x = torch.randn(2, 7, 12)
    with load(module.eval(), kwargs={"x": x}, dynamic_shapes={"x": {0: BATCH}}) as loaded:
        program = capture(loaded).program
    assert not [n for n in program.graph.nodes if "linear_attention" in str(n.target)]
