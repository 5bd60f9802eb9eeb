"""Loops over experts of torch, as they are written by hand: one node that computes what the module does."""

from __future__ import annotations

from collections.abc import Callable
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
from deployml.passes.cleanup import infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator
from deployml.passes.experts import LoopedExperts
from deployml.passes.experts.example_texts import looped_text
from deployml.passes.experts.looped import Facts
from deployml.passes.graph import Builder, census
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.rule import Context, Replacement
from deployml.runtime.target import Target

TARGET = Target(name="cpu", onnxruntime=tuple(map(int, onnxruntime.__version__.split(".")[:3])), opset=21)
EXPERTS, CHOSEN, HIDDEN, INNER = 4, 2, 16, 12


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(HIDDEN, INNER, bias=False) for _ in range(2))
        self.down = nn.Linear(INNER, HIDDEN, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def biased() -> nn.Module:
    return nn.Sequential(nn.Linear(HIDDEN, INNER), nn.GELU(), nn.Linear(INNER, HIDDEN))


class Mixture(nn.Module):
    """A router, and experts that a subclass visits."""

    def __init__(self, expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, EXPERTS)
        self.experts = nn.ModuleList(expert() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = torch.softmax(self.router(x), -1).topk(CHOSEN)
        return self.visit(x, weights, chosen)


class OnHits(Mixture):
    """Each expert on the tokens that chose it."""

    def visit(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        tokens, weights, chosen = x.reshape(-1, HIDDEN), weights.reshape(-1, CHOSEN), chosen.reshape(-1, CHOSEN)
        result = torch.zeros_like(tokens)
        hits = nn.functional.one_hot(chosen, EXPERTS).permute(2, 1, 0)
        for number, expert in enumerate(self.experts):
            slot, token = torch.where(hits[number])
            result.index_add_(0, token, expert(tokens[token]) * weights[token, slot, None])
        return result.reshape(x.shape)


class OnAll(Mixture):
    """Every expert on all tokens, added to something."""

    def visit(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        result = x * 0.5
        for number, expert in enumerate(self.experts):
            result = result + (weights * (chosen == number)).sum(-1, keepdim=True) * expert(x)
        return result


class OnColumns(Mixture):
    """Every expert on all tokens, by its column of scattered weights."""

    def visit(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        table = torch.zeros(*x.shape[:-1], EXPERTS).scatter(-1, chosen, weights)
        return sum(table[..., number, None] * expert(x) for number, expert in enumerate(self.experts))


@pytest.mark.parametrize("expert", (Gated, biased), ids=("gated", "biased"))
@pytest.mark.parametrize("mixture", (OnHits, OnAll, OnColumns))
def test_a_loop_over_experts_is_one_node(mixture: type[Mixture], expert: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    module = mixture(expert).eval()
    axes = {"x": {0: "batch", 1: "length"}}
    loaded = Loaded(module, "module", "experts", (torch.randn(2, 5, HIDDEN),), {}, axes)
    outcome = pipeline.run(translate(capture(loaded), opset=21).model, TARGET, configure=custom_ops.register)
    counts = census(outcome.model)
    signature = "gelu_bias" if expert is biased else "silu_gated"
    assert counts.get(f"deployml::MixtureOfExperts_{signature}") == 1, outcome.journal.declines
    assert not {"NonZero", "ScatterND", "GatherND", "Concat", "Transpose"} & set(counts) - _shape_nodes(outcome.model)
    _compare(outcome.model, module)


@pytest.mark.parametrize(
    "switch", ({"disabled": ("EXP003",)}, {"disabled": ("looped-experts",)}, {"fuse_attention": False})
)
@pytest.mark.parametrize("mixture", (OnHits, OnAll))
def test_the_rule_can_be_switched_off(mixture: type[Mixture], switch: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = mixture(Gated).eval()
    axes = {"x": {0: "batch", 1: "length"}}
    plain = translate(capture(Loaded(module, "module", "experts", (torch.randn(2, 5, HIDDEN),), {}, axes)), opset=21)
    options = pipeline.Options(simplify=False, **switch)
    outcome = pipeline.run(plain.model, TARGET, options=options, configure=custom_ops.register)
    counts = census(outcome.model)
    assert not [op for op in counts if op.startswith("deployml::")]
    assert counts["MatMul"] + counts.get("Gemm", 0) == 1 + 3 * EXPERTS, "the router and three layers of each expert"
    assert not [r for r in outcome.journal.rewrites if r.rule.startswith("EXP")]
    _compare(outcome.model, module)


def _shape_nodes(model: ir.Model) -> set[str]:
    """Concats that put a shape together."""
    concats = [n for n in model.graph if n.op_type == "Concat"]
    return {"Concat"} if all(n.outputs[0].dtype == ir.DataType.INT64 for n in concats) else set()


def _compare(model: ir.Model, module: nn.Module) -> None:
    options = onnxruntime.SessionOptions()
    custom_ops.register(options)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    for batch, length in ((2, 7), (1, 1), (3, 4)):
        x = torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(batch))
        with torch.no_grad():
            expected = module(x).numpy()
        np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], expected, rtol=0, atol=1e-5)


class Changed(LoopedExperts):
    """The rule with a wrong node."""

    def __init__(self, place: int, index: list[int], axis: int) -> None:
        self.place, self.index, self.axis = place, index, axis

    def build(self, facts: Facts, g: Builder) -> Replacement:
        replacement = super().build(facts, g)
        (node,) = [n for n in g.nodes if n.op_type.startswith("MixtureOfExperts")]
        other = g.op("Gather", node.inputs[self.place], g.const(np.array(self.index, np.int64)), axis=self.axis)
        g.nodes.insert(g.nodes.index(node), g.nodes.pop())
        node.replace_input_with(self.place, other)
        return replacement


WRONG = {"inner": (3, [1, 0], 0), "outer": (4, [1, 0], 0), "slots": (1, [1, 0], 1), "weights": (2, [1, 0], 1)}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("chosen", (True, False))
def test_a_wrong_rewrite_is_seen(chosen: bool, name: str) -> None:
    model, journal = ir.from_onnx_text(looped_text(chosen=chosen)), Journal()
    infer_shapes(model)
    before = census(model)
    context = Context(model, TARGET)
    Engine(context, Prover(model, Evaluator(custom_ops.register)), journal).run("experts", [Changed(*WRONG[name])])
    assert [(d.reason, d.rolled_back) for d in journal.declines] == [("not-equal", True)], journal.declines
    assert census(model) == before
