"""Mixtures of experts in grouped products: what is found, and that a wrong rewrite is seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from deployml import custom_ops
from deployml.custom_ops import mixture_of_experts
from deployml.passes import pipeline
from deployml.passes.cleanup import infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator
from deployml.passes.experts import SortedExperts
from deployml.passes.experts.example_texts import SILU, WOVEN, grouped_text
from deployml.passes.experts.mixture import Mixture
from deployml.passes.graph import Builder, attribute, census
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.rule import Context, Replacement
from deployml.runtime.target import Target

TARGET = Target(name="cpu", onnxruntime=(1, 31), opset=20)


def load(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    return model


def applied(text: str, rule: SortedExperts | None = None) -> tuple[ir.Model, Journal]:
    model, journal = load(text), Journal()
    prover = Prover(model, Evaluator(custom_ops.register))
    Engine(Context(model, TARGET), prover, journal).run("experts", [rule or SortedExperts()])
    return model, journal


def the_node(model: ir.Model) -> ir.Node:
    (node,) = [n for n in model.graph if n.op_type.startswith(mixture_of_experts.NAME)]
    return node


class Changed(SortedExperts):
    """The rule with its facts changed, or its node: a rewrite that is wrong."""

    def __init__(self, facts: Callable[[Mixture], Mixture], node: Callable[[ir.Node, Builder], None]) -> None:
        self.facts, self.node = facts, node

    def build(self, facts: Mixture, g: Builder) -> Replacement:
        replacement = super().build(self.facts(facts), g)
        made = replacement.new[0].producer()
        assert made is not None
        self.node(made, g)
        return replacement


def same(facts: Mixture) -> Mixture:
    return facts


def as_built(node: ir.Node, g: Builder) -> None:
    del node, g


def number(name: str, value: float) -> Callable[[ir.Node, Builder], None]:
    def change(node: ir.Node, g: Builder) -> None:
        del g
        assert attribute(node, name) != value
        node.attributes[name] = ir.AttrFloat32(name, value)

    return change


def picked(place: int, index: list[int], axis: int) -> Callable[[ir.Node, Builder], None]:
    """An input with its rows, or columns, in another order."""

    def change(node: ir.Node, g: Builder) -> None:
        other = g.op("Gather", node.inputs[place], g.const(np.array(index, np.int64)), axis=axis)
        g.nodes.insert(g.nodes.index(node), g.nodes.pop())
        node.replace_input_with(place, other)

    return change


def without_bias(facts: Mixture) -> Mixture:
    return dataclasses.replace(facts, bias=None)


def without_inner_bias(facts: Mixture) -> Mixture:
    def bare(part: object) -> object:
        return dataclasses.replace(part, source=dataclasses.replace(part.source, bias=None))

    between = facts.between
    gate, value = bare(between.gate), bare(between.value)
    return dataclasses.replace(facts, between=dataclasses.replace(between, gate=gate, value=value))


def exchanged(facts: Mixture) -> Mixture:
    between = facts.between
    swapped = dataclasses.replace(between, gate=between.value, value=between.gate)
    return dataclasses.replace(facts, between=swapped)


WRONG = {
    "experts-in-another-order": (same, picked(3, [1, 0, 2], 0)),
    "outer-in-another-order": (same, picked(4, [0, 2, 1], 0)),
    "slots-exchanged": (same, picked(1, [1, 0], 1)),
    "weights-exchanged": (same, picked(2, [1, 0], 1)),
    "no-outer-bias": (without_bias, as_built),
    "no-inner-bias": (without_inner_bias, as_built),
    "gate-and-value-exchanged": (exchanged, as_built),
    "alpha": (same, number("alpha", 1.0)),
    "alpha-by-a-hundredth": (same, number("alpha", 1.515)),
    "no-limit": (same, number("limit", float("inf"))),
    "limit-by-a-hundredth": (same, number("limit", 6.93)),
    "no-offset": (same, number("offset", 0.0)),
}


def test_the_change_of_nothing_is_proven() -> None:
    text = grouped_text(between=WOVEN, stored=True, bias=True)
    model, journal = applied(text, Changed(same, as_built))
    assert journal.fired() == {"EXP001": 1}
    assert the_node(model).op_type == "MixtureOfExperts_silu_gated_bias"


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("tokens", ("N", 5, 1))
def test_a_wrong_rewrite_is_seen(name: str, tokens: int | str) -> None:
    text = grouped_text(between=WOVEN, stored=True, bias=True, tokens=tokens)
    model, journal = applied(text, Changed(*WRONG[name]))
    assert [(d.reason, d.rolled_back) for d in journal.declines] == [("not-equal", True)], journal.declines
    assert census(model) == census(load(text))


HALVES = "first, second = Split <axis = -1, num_outputs = 2> (h)"
SPELLINGS = {
    "silu": (SILU, "silu_gated", {"alpha": 1.0}),
    "value-first": (f"{HALVES} s = Sigmoid (second) t = Mul (s, second) a = Mul (first, t)", "silu_gated", {}),
    "quick-gelu": (
        f"{HALVES} t = com.microsoft.QuickGelu <alpha = 1.25> (first) a = Mul (t, second)",
        "silu_gated",
        {"alpha": 1.25},
    ),
    "gelu": (f"{HALVES} t = Gelu (first) a = Mul (second, t)", "gelu_gated", {}),
    "gelu-tanh": (f'{HALVES} t = Gelu <approximate = "tanh"> (first) a = Mul (t, second)', "gelu_tanh_gated", {}),
    "fast-gelu": (f"{HALVES} t = com.microsoft.FastGelu (first) a = Mul (t, second)", "gelu_tanh_gated", {}),
    "relu": (f"{HALVES} t = Relu (first) a = Mul (t, second)", "relu_gated", {"limit": float("inf"), "offset": 0.0}),
    "bounded": (
        f"{HALVES} b = Clip (first, , seven) u = Clip (second, minus_seven, seven) t = Relu (b) a = Mul (t, u)",
        "relu_gated",
        {"limit": 7.0},
    ),
    "moved": (f"{HALVES} t = Relu (first) u = Add (plus_one, second) a = Mul (t, u)", "relu_gated", {"offset": 1.0}),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_gate_is_found(name: str) -> None:
    between, signature, numbers = SPELLINGS[name]
    model, journal = applied(grouped_text(between=between, stored=True))
    assert journal.fired() == {"EXP001": 1}, journal.declines
    node = the_node(model)
    assert node.op_type == f"{mixture_of_experts.NAME}_{signature}"
    assert {key: attribute(node, key) for key in numbers} == numbers


ALONE = {
    "relu": "a = Relu (h)",
    "relu_squared": "r = Relu (h) a = Pow (r, squared)",
    "gelu": "a = Gelu (h)",
    "silu": "s = Sigmoid (h) a = Mul (s, h)",
    "silu_gated": """other = deployml.canonical.GroupedMatMul <groups = 3> (rows, inner, ends)
        s = Sigmoid (h) t = Mul (s, h) a = Mul (t, other)""",
}


@pytest.mark.parametrize("signature", ALONE)
def test_experts_without_a_split_are_found(signature: str) -> None:
    model, journal = applied(grouped_text(between=ALONE[signature], stored=True, gated=False))
    assert journal.fired() == {"EXP001": 1}, journal.declines
    assert the_node(model).op_type == f"{mixture_of_experts.NAME}_{signature}"


DECLINED = {
    "one-bound": (f"{HALVES} b = Clip (first, , seven) t = Relu (b) a = Mul (t, second)", True),
    "another-bound": (
        f"{HALVES} b = Clip (first, , seven) u = Clip (second, minus_seven, plus_one) t = Relu (b) a = Mul (t, u)",
        True,
    ),
    "gate-bounded-below": (
        f"""{HALVES} b = Clip (first, minus_seven, seven) u = Clip (second, minus_seven, seven)
        t = Relu (b) a = Mul (t, u)""",
        True,
    ),
    "sigmoid-alone": (f"{HALVES} t = Sigmoid (first) a = Mul (t, second)", True),
    "another-power": ("r = Relu (h) a = Pow (r, seven)", False),
    "bounded-without-a-gate": ("b = Clip (h, , seven) a = Relu (b)", False),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_no_expert_of_the_operator_computes_is_declined(name: str) -> None:
    between, gated = DECLINED[name]
    _, journal = applied(grouped_text(between=between, stored=True, gated=gated))
    assert [d.reason for d in journal.declines] == ["activation"]


def run(model: ir.Model, target: Target, **options: object) -> pipeline.Outcome:
    return pipeline.run(model, target, options=pipeline.Options(**options), configure=custom_ops.register)


def test_what_is_declined_is_one_product_per_expert_and_says_why() -> None:
    target = dataclasses.replace(TARGET, name="portable")
    outcome = run(load(grouped_text()), target)
    counts = census(outcome.model)
    assert counts["Gemm"] == 6 and not [op for op in counts if "::" in op]
    assert [(d.rule, d.reason) for d in outcome.journal.declines] == [("EXP001", "no-capability")]


@pytest.mark.parametrize("options", ({"disabled": ("EXP001",)}, {"fuse_attention": False}), ids=str)
def test_the_rule_can_be_switched_off(options: dict[str, object]) -> None:
    counts = census(run(load(grouped_text()), TARGET, **options).model)
    assert counts["Gemm"] == 6 and not [op for op in counts if mixture_of_experts.NAME in op]


def test_the_model_carries_the_body_and_needs_no_sorting() -> None:
    outcome = run(load(grouped_text()), TARGET)
    assert census(outcome.model) == {"deployml::MixtureOfExperts_silu_gated": 1}
    assert [key[1] for key in outcome.model.functions] == ["MixtureOfExperts_silu_gated"]


def test_weights_in_another_order_are_stored_so() -> None:
    outcome = run(load(grouped_text(between=WOVEN, stored=True, bias=True)), TARGET)
    assert census(outcome.model) == {"deployml::MixtureOfExperts_silu_gated_bias": 1}
    assert [v.is_initializer() for v in the_node(outcome.model).inputs[3:]] == [True] * 4
