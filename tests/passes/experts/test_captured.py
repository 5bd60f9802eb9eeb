"""Mixtures of experts of torch, exported whole: each becomes one node that computes what the module does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deployml import custom_ops
from deployml.exporter.capture import capture
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import translate
from deployml.passes import pipeline
from deployml.passes.graph import census
from deployml.runtime.target import Target

moe = pytest.importorskip("transformers.integrations.moe", reason="not run: transformers has no experts interface")

TARGET = Target(name="cpu", onnxruntime=tuple(map(int, onnxruntime.__version__.split(".")[:3])), opset=21)
EXPERTS, HIDDEN, INNER = 5, 24, 16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


class Experts(nn.Module):
    """Experts as transformers stores them."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        self.act_fn = config.act

    def draw(self, *, gated: bool, transposed: bool, bias: bool) -> None:
        first = "gate_up_proj" if gated else "up_proj"
        for name, rows, columns in ((first, INNER * (1 + gated), HIDDEN), ("down_proj", HIDDEN, INNER)):
            shape = (EXPERTS, columns, rows) if transposed else (EXPERTS, rows, columns)
            setattr(self, name, nn.Parameter(torch.randn(shape) * 0.4))
            if bias:
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, rows)))

    def forward(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError  # transformers puts its own in the place of it


class Woven(Experts):
    """The gate of gpt-oss."""

    def _apply_gate(self, h: Tensor) -> Tensor:
        gate, up = h[..., ::2].clamp(max=1.5), h[..., 1::2].clamp(min=-1.5, max=1.5)
        return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


class Routed(nn.Module):
    """A router in float32 before the experts, whatever their type is."""

    def __init__(self, experts: nn.Module, chosen: int) -> None:
        super().__init__()
        self.router, self.experts, self.chosen = nn.Linear(HIDDEN, EXPERTS), experts, chosen

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, HIDDEN)
        weights, experts = torch.topk(torch.softmax(self.router(tokens), -1), self.chosen)
        dtype = next(self.experts.parameters()).dtype
        return self.experts(tokens.to(dtype), experts, weights.to(dtype)).float().reshape(x.shape)


def squared(x: Tensor) -> Tensor:
    return torch.relu(x).square()


def tanh_gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


#: Signature -> what transformers is told, the activation, and the class.
FORMS: dict[str, tuple[dict[str, bool], Any, type[Experts]]] = {
    "silu_gated": ({}, nn.functional.silu, Experts),
    "silu_gated_bias": (
        {"is_concatenated": False, "is_transposed": True, "has_bias": True},
        None,
        Woven,
    ),
    "gelu_tanh_gated_bias": ({"has_bias": True}, tanh_gelu, Experts),
    "gelu_gated": ({"is_transposed": True}, nn.functional.gelu, Experts),
    "relu_squared": ({"has_gate": False}, squared, Experts),
    "relu_bias": ({"has_gate": False, "has_bias": True, "is_transposed": True}, torch.relu, Experts),
}


def module_of(form: str, implementation: str, chosen: int) -> nn.Module:
    flags, act, base = FORMS[form]
    torch.manual_seed(0)
    made = moe.use_experts_implementation(type("Experts", (base,), {}), **flags)
    experts = made(SimpleNamespace(act=act, _experts_implementation=implementation))
    experts.draw(
        gated=flags.get("has_gate", True),
        transposed=flags.get("is_transposed", False),
        bias=flags.get("has_bias", False),
    )
    return Routed(experts, chosen).eval()


def exported(module: nn.Module, x: Tensor, **options: Any) -> pipeline.Outcome:
    axes = {"x": {0: "batch", 1: "length"}}
    translated = translate(capture(Loaded(module, "module", "experts", (x,), {}, axes)), opset=21)
    return pipeline.run(translated.model, TARGET, options=pipeline.Options(**options), configure=custom_ops.register)


def compare(model: ir.Model, module: nn.Module, dtype: torch.dtype) -> None:
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    for batch, length in ((2, 7), (1, 1), (3, 4)):
        x = torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = module(x).numpy()
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


CASES = [
    *((form, "grouped_mm", 2) for form in FORMS),
    *((form, "batched_mm", 2) for form in ("silu_gated", "silu_gated_bias", "relu_bias")),
    ("silu_gated", "grouped_mm", 1),
    ("silu_gated", "batched_mm", 1),
]


@pytest.mark.parametrize(("form", "implementation", "chosen"), CASES)
def test_experts_of_transformers_are_one_node(form: str, implementation: str, chosen: int) -> None:
    module = module_of(form, implementation, chosen)
    outcome = exported(module, torch.randn(2, 5, HIDDEN))
    counts = census(outcome.model)
    assert counts.get(f"deployml::MixtureOfExperts_{form}") == 1, outcome.journal.declines
    assert not {"GatherND", "Split", "ReduceSum", "ScatterND", "Transpose"} & set(counts), counts
    compare(outcome.model, module, torch.float32)


@pytest.mark.parametrize("form", ("silu_gated", "silu_gated_bias"))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_experts_in_half_precision_are_one_node(form: str, dtype: torch.dtype) -> None:
    module = module_of(form, "grouped_mm", 2)
    module.experts.to(dtype)
    outcome = exported(module, torch.randn(2, 5, HIDDEN))
    assert census(outcome.model).get(f"deployml::MixtureOfExperts_{form}") == 1, outcome.journal.declines
    compare(outcome.model, module, dtype)


@pytest.mark.parametrize(
    "switch", ({"disabled": ("EXP002",)}, {"disabled": ("gathered-experts",)}, {"fuse_attention": False}), ids=str
)
def test_gathered_experts_can_be_switched_off(switch: dict[str, Any]) -> None:
    module = module_of("silu_gated", "batched_mm", 2)
    outcome = exported(module, torch.randn(2, 5, HIDDEN), simplify=False, **switch)
    counts = census(outcome.model)
    assert not [op for op in counts if op.startswith("deployml::")]
    assert counts.get("GatherND", 0) + counts.get("Gather", 0) >= 2, f"no weights are gathered: {counts}"
    assert not [r for r in outcome.journal.rewrites if r.rule.startswith("EXP")]
    compare(outcome.model, module, torch.float32)
