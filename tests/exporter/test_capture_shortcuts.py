"""Code that skips work by the values of tensors, and code that only looks so."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deployml.exporter.capture import capture
from deployml.exporter.capture.replay import difference
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import translate
from deployml.runtime.errors import UnsupportedError

EXPERTS, CHOSEN = 4, 2


class Experts(nn.Module):
    """(batch, length, 8), two of four experts a token; subclasses say how the experts are visited."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gate = nn.Linear(8, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, 8)
        weights, chosen = self.gate(tokens).softmax(-1).topk(CHOSEN, -1)
        result = torch.zeros_like(tokens)
        self.visit(tokens, weights, nn.functional.one_hot(chosen, EXPERTS).permute(2, 1, 0), result)
        return result.reshape(x.shape)

    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        raise NotImplementedError


class Skipping(Experts):
    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        for number, expert in enumerate(self.experts):
            rank, token = torch.where(mask[number])
            if token.numel() == 0:
                continue
            result.index_add_(0, token, expert(tokens[token]) * weights[token, rank, None])


class Asking(Experts):
    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        for number, expert in enumerate(self.experts):
            if mask[number].any():
                rank, token = torch.where(mask[number])
                result.index_add_(0, token, expert(tokens[token]) * weights[token, rank, None])


class VisitingHits(Experts):
    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            rank, token = torch.where(mask[number].squeeze(0))
            result.index_add_(0, token, self.experts[number](tokens[token]) * weights[token, rank, None])


class QuietHits(Experts):
    """Hits are sought without gradients, on a mask made there."""

    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        with torch.no_grad():
            mask = mask.clone()
            hits = torch.greater(mask.permute(0, 2, 1).sum(dim=(-1, -2)), 0).nonzero()
        for hit in hits:
            rank, token = torch.where(mask[hit[0]])
            result.index_add_(0, token, self.experts[hit[0]](tokens[token]) * weights[token, rank, None])


class OneMoreClass(Experts):
    """The mask has a class more than there are experts, for tokens that belong to none (DBRX)."""

    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        mask = nn.functional.pad(mask, (0, 0, 0, 0, 0, 1))
        matrices = torch.stack([expert.weight for expert in self.experts])
        for hit in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            rank, token = torch.where(mask[hit[0]])
            result.index_add_(0, token, tokens[token].matmul(matrices[hit[0]]) * weights[token, rank, None])


class NamingHits(Experts):
    """Experts kept by name, their router brought to the type of its input on every call."""

    def __init__(self) -> None:
        super().__init__()
        self.named = nn.ModuleDict({f"expert_{i}": expert for i, expert in enumerate(self.experts)})

    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        self.gate = self.gate.to(tokens.dtype)
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            rank, token = torch.where(mask[number].squeeze(0))
            named = self.named[f"expert_{number[0]}"]
            result.index_add_(0, token, named(tokens[token]) * weights[token, rank, None])


class CountingHits(Experts):
    """Visiting an expert that no token chose changes the result."""

    def visit(self, tokens: Tensor, weights: Tensor, mask: Tensor, result: Tensor) -> None:
        for number in torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero():
            result += self.experts[number].bias


def _loaded(module: nn.Module) -> Loaded:
    return Loaded(module.eval(), "module", "experts", (torch.randn(2, 5, 8),), {}, {"x": {0: "batch", 1: "length"}})


@pytest.mark.parametrize(
    "module",
    [Skipping(), Asking(), VisitingHits(), QuietHits(), OneMoreClass(), NamingHits()],
    ids=lambda m: type(m).__name__,
)
def test_a_shortcut_is_left_out_and_said(module: Experts) -> None:
    captured = capture(_loaded(module))
    assert [note for note in captured.notes if "leaves the shortcuts out" in note]
    proto = ir.to_proto(translate(captured, opset=21).model)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for size in ((1, 1), (3, 7)):
        x = torch.randn(*size, 8)
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=0, atol=1e-6)


def test_a_loop_over_hits_that_counts_them_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="decides in Python by the values of a tensor"):
        capture(_loaded(CountingHits()))


@pytest.mark.parametrize("mark", [float("-inf"), torch.finfo(torch.float32).min])
def test_marks_of_masked_places_do_not_hide_a_difference(mark: float) -> None:
    want = torch.tensor([[1.0, 2.0, mark]])
    assert difference([want], [want.clone()], ["y"]) == ""
    assert "off by" in difference([want], [torch.tensor([[1.0, 2.5, mark]])], ["y"])
    assert "off by" in difference([want], [torch.tensor([[1.0, 2.0, 0.0]])], ["y"])
