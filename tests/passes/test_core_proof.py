"""The proof: wrong rewrites are caught by a wide margin and leave no trace; right ones pass, once for each kind."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes.attention import SoftmaxAttention
from deployml.passes.graph import Builder
from deployml.passes.look import no_match
from deployml.passes.proof import Proof, Prover
from deployml.passes.rule import Replacement, Safety

from .core_graphs import (
    CPU,
    Call,
    applied,
    call_model,
    evaluator,
    feeds,
    hand_written,
    model_of,
    run,
    serialized,
)
from .core_rules import OP, WRONG, WrongRule, masked_call, rebuilt

RICH = Call(mask="B,1,S,S", bias="1,4,S,S", softcap=4.0, sink=True, causal="upper_left", keys="S", scale=0.5)
#: What each wrong rule needs to be wrong on.
CALLS = dict.fromkeys(WRONG, RICH) | {
    "upper-left": Call(causal="lower_right"),
    "lower-right": Call(causal="upper_left"),
    "not-causal": Call(causal="upper_left", keys="S"),
    "key-is-query": Call(keys="S"),
}


def verdict(model: ir.Model, change: str, *, assume: bool = False) -> Proof:
    """The proof of one wrong rewrite of the only call of a model."""
    node = next(n for n in model.graph if n.name == "site")
    g = Builder(model.graph, prefix="wrong", like=node)
    made = WRONG[change](node, g)
    if assume:
        made = Replacement(old=made.old, new=made.new, assumptions=("fully-masked-rows",), rows_of=node)
    proof = Prover(model, evaluator()).prove(made, g, Safety.ROUNDING)
    g.discard()
    return proof


def margin(proof: Proof) -> float:
    """By how much a failed proof failed: the error over what was granted."""
    assert not proof.ok
    found = re.search(r"off by (\S+) of its largest value, (\S+) was granted", proof.detail)
    assert found is not None, proof.detail
    return float(found[1]) / float(found[2])


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_rule_is_rolled_back_and_leaves_every_byte(change: str) -> None:
    model = call_model(CALLS[change])
    before = serialized(model)
    journal = applied(model, WrongRule(WRONG[change]))
    assert serialized(model) == before
    assert not journal.rewrites
    (decline,) = journal.declines
    assert decline.rolled_back and decline.rule == "ZZZ001" and decline.at == "site" and decline.detail


@pytest.mark.parametrize("change", WRONG)
def test_an_assumption_about_empty_rows_covers_nothing_else(change: str) -> None:
    model = call_model(CALLS[change])
    before = serialized(model)
    assert not applied(model, WrongRule(WRONG[change], assume=True)).rewrites
    assert serialized(model) == before


def test_the_right_rewrite_passes() -> None:
    model = call_model(RICH)
    journal = applied(model, WrongRule(lambda n, g: rebuilt(n, g, origin="op")))
    assert len(journal.rewrites) > 0 and not journal.declines
    assert journal.rewrites[0].error is not None and journal.rewrites[0].error <= journal.rewrites[0].granted


@pytest.mark.parametrize("text", ("input", "padding", "lengths", "segments", "window", "causal"))
@pytest.mark.parametrize("assume", (False, True))
@pytest.mark.parametrize("change", ("scale", "no-mask", "heads-permuted"))
def test_masked_sites_are_proven_sharply(text: str, change: str, assume: bool) -> None:
    """A scale off by 10% or a dropped mask moves the result by ten times what is granted, at least."""
    proof = verdict(model_of(masked_call(text)), change, assume=assume)
    if "NaN in other places" not in proof.detail:  # a dropped mask fills the rows that had no key
        assert margin(proof) >= 10


@pytest.mark.parametrize("low", (-1e9, -1e10, -3.4028234663852886e38))
@pytest.mark.parametrize("assume", (False, True))
@pytest.mark.parametrize("change", ("scale", "no-bias", "heads-permuted"))
def test_finite_fills_are_proven_sharply(low: float, change: str, assume: bool) -> None:
    assert margin(verdict(model_of(masked_call("low-bias", low=low)), change, assume=assume)) >= 10


@pytest.mark.parametrize("text", ("bias", "bias-of-heads-and-keys", "distance-bias"))
@pytest.mark.parametrize("change", ("scale", "no-bias", "heads-permuted"))
def test_biased_sites_are_proven_sharply(text: str, change: str) -> None:
    assert margin(verdict(model_of(masked_call(text)), change)) >= 10


@pytest.mark.parametrize("reach", (1, 2, 3, 8, 20, 64, 512))
def test_a_dropped_window_is_seen_however_wide_it_is(reach: int) -> None:
    if reach == 1:  # one key a row: the result cannot depend on the scale, but it does on the mask
        assert not verdict(model_of(masked_call("window", reach=reach)), "no-mask").ok
        return
    assert margin(verdict(model_of(masked_call("window", reach=reach)), "no-mask")) >= 10


@pytest.mark.parametrize(
    "call",
    (
        Call(),
        Call(kv_heads=2),
        Call(softcap=5.0),
        Call(sink=True),
        Call(causal="upper_left", keys="S"),
        Call(size=64),
        Call(size=8, value_size=24, kv_heads=1),
    ),
)
def test_plain_sites_are_proven_sharply(call: Call) -> None:
    model = call_model(dataclasses.replace(call, scale=call.size**-0.5))
    assert margin(verdict(model, "scale")) >= 10
    assert margin(verdict(model, "heads-permuted")) >= 10


def test_exact_means_bit_equal() -> None:
    def tiny(node: ir.Node, g: Builder) -> Replacement:
        made = rebuilt(node, g)
        return Replacement(old=made.old, new=[g.op("Mul", made.new[0], g.scalar(1 + 2**-23, like=node.inputs[0]))])

    model = call_model(Call())
    before = serialized(model)
    journal = applied(model, WrongRule(tiny, safety=Safety.EXACT))
    assert [d.detail for d in journal.declines] == ["output 0 is not bit-equal"]
    assert serialized(model) == before
    assert applied(model, WrongRule(tiny, safety=Safety.ROUNDING)).rewrites
    assert applied(call_model(Call()), WrongRule(lambda n, g: rebuilt(n, g), safety=Safety.EXACT)).rewrites


def test_an_assumption_is_recorded_only_where_it_was_needed() -> None:
    def to_zero(node: ir.Node, g: Builder) -> Replacement:
        return rebuilt(node, g, empty_rows="zero")

    def once(text: str, doubted: bool = False) -> tuple[str, ...]:
        model = model_of(text)
        node = next(n for n in model.graph if n.name == "site")
        g = Builder(model.graph, prefix="t", like=node)
        made = to_zero(node, g)
        named = ("fully-masked-rows",)
        made = Replacement(old=made.old, new=made.new, assumptions=named, rows_of=node, doubted=doubted)
        proof = Prover(model, evaluator()).prove(made, g, Safety.ROUNDING)
        assert proof.ok, proof.detail
        return proof.assumptions

    assert once(masked_call("padding")) == ("fully-masked-rows",)
    assert once(masked_call("input")) == ("fully-masked-rows",)
    assert once(masked_call("causal")) == ()
    assert once(masked_call("window")) == ()
    assert once(masked_call("padding", empty_rows="zero")) == ()
    assert once(masked_call("padding", empty_rows="zero"), doubted=True) == ()  # rows without keys were seen
    assert once(masked_call("window"), doubted=True) == ("fully-masked-rows",)  # none was


def test_without_the_assumption_empty_rows_must_be_equal() -> None:
    model = model_of(masked_call("padding"))
    before = serialized(model)
    journal = applied(model, WrongRule(lambda n, g: rebuilt(n, g, empty_rows="zero")))
    assert [d.reason for d in journal.declines] == ["not-equal"]
    assert serialized(model) == before


def _layers(count: int, different: bool = False) -> ir.Model:
    lines, last = [], "x"
    for n in range(count):
        scale = 0.25 + 0.01 * n * different
        lines += [f"  a{n} = {OP.replace('::', '.')} <scale = {scale}> ({last}, {last}, {last})"]
        lines += [f"  x{n} = Add (a{n}, b{n})"]
        last = f"x{n}"
    biases = ", ".join(f"float[16] b{n} = {{{','.join([str(n)] * 16)}}}" for n in range(count))
    known = ", ".join(f"float[B,4,S,16] {name}{n}" for n in range(count - 1) for name in "ax")
    return model_of(
        f"""<ir_version: 10, opset_import: ["" : 20, "deployml.canonical" : 1]>
layers (float[B,4,S,16] x) => (float[B,4,S,16] {last}) <{biases}, {known}> {{
{chr(10).join(lines)}
}}"""
    )


@pytest.mark.parametrize(("different", "executed"), ((False, 1), (True, 6)))
def test_equal_sub_graphs_are_proven_once(different: bool, executed: int) -> None:
    def once(node: ir.Node, g: Builder) -> Replacement:
        if node.name.startswith("wrong-rule"):
            raise no_match()
        return rebuilt(node, g)

    model = _layers(6, different)
    rule = WrongRule(once)
    journal = applied(model, rule)
    proofs = [r.proof for r in journal.rewrites]
    assert proofs.count("executed") == executed
    assert proofs.count("cached") == 6 - executed


def test_a_zero_bias_cannot_hide_that_it_was_dropped() -> None:
    """Weights are drawn anew: what a default initialisation hides, the proof sees."""
    zeros = ",".join(["0"] * 16)
    text = f"""<ir_version: 10, opset_import: ["" : 20, "deployml.canonical" : 1]>
g (float[B,4,S,16] x) => (float[B,4,S,16] y) <float[16] b = {{{zeros}}}> {{
  v = Add (x, b)
  [site] y = deployml.canonical.Attention <scale = 0.25> (x, x, v)
}}"""

    def dropped(node: ir.Node, g: Builder) -> Replacement:
        return rebuilt(node, g, {2: node.inputs[0]})

    model = model_of(text)
    given = feeds(model)
    before = serialized(model)
    assert np.array_equal(run(model, given)[0], run(model_of(text.replace("(x, x, v)", "(x, x, x)")), given)[0])
    journal = applied(model, WrongRule(dropped))
    assert [d.reason for d in journal.declines] == ["not-equal"]
    assert serialized(model) == before


def test_a_constant_a_rule_relies_on_keeps_its_values() -> None:
    zeros = ",".join(["0"] * 16)
    text = f"""<ir_version: 10, opset_import: ["" : 20, "deployml.canonical" : 1]>
g (float[B,4,S,16] x) => (float[B,4,S,16] y) <float[16] b = {{{zeros}}}> {{
  v = Add (x, b)
  [site] y = deployml.canonical.Attention <scale = 0.25> (x, x, v)
}}"""

    def dropped(node: ir.Node, g: Builder) -> Replacement:
        add = node.inputs[2].producer()
        assert add is not None
        g.relies_on(add.inputs[1])
        return rebuilt(node, g, {2: add.inputs[0]})

    model = model_of(text)
    node = next(n for n in model.graph if n.name == "site")
    g = Builder(model.graph, prefix="t", like=node)
    assert Prover(model, evaluator()).prove(dropped(node, g), g, Safety.ROUNDING).ok


def test_a_rewrite_of_values_with_unknown_rank_is_not_proven() -> None:
    text = hand_written().replace("float[B,4,S,16] q", "float q")
    model = ir.from_onnx_text(text)
    before = serialized(model)
    journal = applied(model, SoftmaxAttention(), target=CPU)
    assert serialized(model) == before
    assert not journal.rewrites
