"""Laws that every rule obeys, checked over the examples the rules carry themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from deployml import custom_ops
from deployml.passes import canonical
from deployml.passes.cleanup import infer_shapes
from deployml.passes.draw import bind, random_feeds
from deployml.passes.engine import Engine
from deployml.passes.evaluate import Evaluator, in_double
from deployml.passes.graph import census
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.registry import RULES
from deployml.passes.rule import Context, Example, Rule, Safety
from deployml.runtime.target import Target

SECTIONS = ("What it finds", "Why", "Before -> After", "When it declines", "Numerics", "References")
#: Operators without a schema in onnx itself, though their domain is the standard one or has no schemas at all.
BEYOND_THE_CHECKER = {"SimplifiedLayerNormalization"}
SIZES = ((2, 5, 7, 3), (3, 4, 2, 6))


def cases(*, fires: bool) -> Iterator[pytest.param]:
    for rule in RULES:
        for number, example in enumerate(e for e in rule.examples if bool(e.fires) is fires):
            yield pytest.param(rule, example, id=f"{rule.code}-{number}")


def load(example: Example) -> ir.Model:
    """The example as the pipeline would see it: constants are initializers, shapes are known."""
    model = ir.from_onnx_text(example.text)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_shapes(model)
    return model


def evaluator() -> Evaluator:
    return Evaluator(custom_ops.register)


def plain(model: ir.Model) -> ir.Model:
    """The model with the project's private operators written out, so that it can be run."""
    copy = model.clone()
    canonical.expand_all(copy)
    return copy


def apply(rule: Rule, model: ir.Model, example: Example) -> tuple[int, Journal]:
    target = Target(name="cpu", onnxruntime=example.onnxruntime, opset=model.graph.opset_imports[""])
    journal = Journal()
    fired = Engine(Context(model, target), Prover(model, evaluator()), journal).run("contract", [rule])
    return fired, journal


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_a_rule_explains_itself(rule: Rule) -> None:
    text = type(rule).__doc__ or ""
    found = re.findall(r"^ *## (.+)$", text, re.MULTILINE)
    assert tuple(found) == SECTIONS
    assert re.fullmatch(r"[A-Z]{3}\d{3}", rule.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
    for section in re.split(r"^ *## .+$", text, flags=re.MULTILINE):
        assert section.strip()


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_a_rule_has_examples_of_both_kinds_and_one_with_symbols(rule: Rule) -> None:
    firing = [e for e in rule.examples if e.fires]
    refusing = [e for e in rule.examples if not e.fires]
    assert len(firing) >= 2 and len(refusing) >= 2
    assert all(e.because for e in refusing)
    assert any(re.search(r"\w+\[[^\]]*[A-Z]", e.text.partition("\n")[2]) for e in firing)


def test_codes_and_names_are_unique() -> None:
    assert len({r.code for r in RULES}) == len({r.name for r in RULES}) == len(RULES)


@pytest.mark.parametrize(("rule", "example"), cases(fires=True))
def test_an_example_fires_as_often_as_it_says(rule: Rule, example: Example) -> None:
    model = load(example)
    fired, journal = apply(rule, model, example)
    assert fired == example.fires, [(d.reason, d.detail) for d in journal.declines]
    counts = census(model)
    for op, count in (example.emits or {}).items():
        assert counts.get(op, 0) == count
    assert not [d for d in journal.declines if d.rolled_back]


@pytest.mark.parametrize(("rule", "example"), cases(fires=True))
def test_a_rule_finds_nothing_in_its_own_result(rule: Rule, example: Example) -> None:
    model = load(example)
    apply(rule, model, example)
    again, _ = apply(rule, model, example)
    assert again == 0


@pytest.mark.parametrize(("rule", "example"), cases(fires=False))
def test_an_example_declines_with_its_reason_and_stays_as_it_was(rule: Rule, example: Example) -> None:
    model = load(example)
    before = census(model)
    fired, journal = apply(rule, model, example)
    assert fired == 0
    assert census(model) == before
    reasons = [d.reason for d in journal.declines]
    assert reasons == ([] if example.because == "no-match" else [example.because])


@pytest.mark.parametrize(("rule", "example"), cases(fires=True))
def test_the_result_is_a_valid_graph_with_the_same_interface(rule: Rule, example: Example) -> None:
    original, model = load(example), load(example)
    apply(rule, model, example)
    names = [v.name for v in (*model.graph.inputs, *model.graph.initializers.values())]
    names += [o.name for n in model.graph for o in n.outputs if o.name]
    assert len(names) == len(set(names))
    assert all(n.domain in model.graph.opset_imports for n in model.graph)
    for mine, theirs in (
        (model.graph.inputs, original.graph.inputs),
        (model.graph.outputs, original.graph.outputs),
    ):
        assert [(v.name, v.dtype, str(v.shape)) for v in mine] == [(v.name, v.dtype, str(v.shape)) for v in theirs]
    if not set(census(model)) & BEYOND_THE_CHECKER:
        onnx.checker.check_model(ir.to_proto(plain(model)))
    evaluator().prepare(plain(model))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(("rule", "example"), cases(fires=True))
def test_the_result_computes_the_same(rule: Rule, example: Example, sizes: tuple[int, ...]) -> None:
    original, model = load(example), load(example)
    _, journal = apply(rule, model, example)
    inputs = list(original.graph.inputs)
    feeds = dict(
        zip(
            [str(v.name) for v in inputs],
            random_feeds(inputs, bind(inputs, sizes), np.random.default_rng(7), 0).values(),
            strict=True,
        )
    )
    if "fully-masked-rows" in journal.assumptions():
        for value in inputs:
            if value.dtype == ir.DataType.BOOL:
                feeds[str(value.name)][..., 0] = True
    engine = evaluator()
    before, after = engine.prepare(plain(original))(feeds), engine.prepare(plain(model))(feeds)
    exact_run = engine.prepare_exact(in_double(plain(original)))
    exact = before if exact_run is None else exact_run(feeds)
    compared = 0
    for old, new, reference in zip(before, after, exact, strict=True):
        assert old.shape == new.shape and old.dtype == new.dtype
        compared += new.size
        if rule.safety is Safety.EXACT:
            assert np.array_equal(old, new, equal_nan=new.dtype.kind == "f")
            continue
        assert np.array_equal(np.isnan(old), np.isnan(new))
        finite = np.isfinite(reference)
        scale = float(np.max(np.abs(reference[finite]))) or 1.0
        unfused = float(np.max(np.abs(old - reference)[finite])) / scale
        error = float(np.max(np.abs(new - reference)[finite])) / scale
        assert error <= max(4 * unfused, 64 * float(np.finfo(new.dtype).eps))
    assert compared
