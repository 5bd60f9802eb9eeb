"""Hostile graphs for every registered rule: no rule raises, the interface stays, the result loads and is equal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deployml.passes import canonical
from deployml.passes.cleanup import infer_shapes
from deployml.passes.engine import Engine
from deployml.passes.journal import Journal
from deployml.passes.proof import Prover
from deployml.passes.registry import RULES
from deployml.passes.rule import Context, Example, Rule
from deployml.runtime.target import Target

from .core_graphs import evaluator
from .core_hostile import HOSTILE, Unfit

SIZES = {"B": 2, "S": 5, "T": 5, "N": 3}


def cases() -> Iterator[Any]:
    for rule in RULES:
        firing = [e for e in rule.examples if e.fires][:2]
        refusing = [e for e in rule.examples if not e.fires][:1]
        for number, example in enumerate([*firing, *refusing]):
            marks = [pytest.mark.slow] if number else []  # one example a rule in the everyday run
            for change in HOSTILE:
                yield pytest.param(rule, example, change, id=f"{rule.code}-{number}-{change.__name__}", marks=marks)


def loaded(model: ir.Model) -> Callable[[Any], list[np.ndarray]] | None:
    """A callable of the model, canonical calls expanded; None when onnxruntime cannot load it."""
    plain = model.clone()
    canonical.expand_all(plain)
    try:
        return evaluator().prepare(plain)
    except Exception:
        return None


def random_inputs(model: ir.Model) -> dict[str, np.ndarray] | None:
    """Inputs by name: each symbol one size, a symbol without a size its own."""
    rng, sizes, made = np.random.default_rng(3), dict(SIZES), {}
    for value in model.graph.inputs:
        if value.dtype is None or value.shape is None:
            return None
        shape = []
        for dim in value.shape:
            if isinstance(dim, int):
                shape.append(dim)
            elif dim.value is None:
                return None
            else:
                shape.append(sizes.setdefault(str(dim.value), 3 + len(sizes) % 4))
        if value.dtype.is_floating_point():
            made[str(value.name)] = rng.standard_normal(shape).astype(value.dtype.numpy())
        else:
            flags = rng.integers(0, 2, shape)
            if flags.ndim:
                flags[..., 0] = 1  # a row without any key is subject of a named assumption
            made[str(value.name)] = flags.astype(value.dtype.numpy())
    return made


def interface(model: ir.Model) -> tuple[list[str], list[str]]:
    return [str(v.name) for v in model.graph.inputs], [str(v.name) for v in model.graph.outputs]


def equal(old: np.ndarray, new: np.ndarray) -> bool:
    if old.shape != new.shape or old.dtype != new.dtype:
        return False
    if not np.issubdtype(old.dtype, np.floating):
        return np.array_equal(old, new)
    good = np.isfinite(old)
    if not np.array_equal(good, np.isfinite(new)):
        return False
    largest = float(np.max(np.abs(old[good].astype(np.float64)), initial=0.0)) or 1.0
    granted = 256 * float(np.finfo(old.dtype).eps)
    gap = np.abs(old[good].astype(np.float64) - new[good].astype(np.float64))
    return float(np.max(gap, initial=0.0)) <= granted * largest


@pytest.mark.parametrize(("rule", "example", "change"), cases())
def test_a_hostile_graph_stays_what_it_was(
    rule: Rule, example: Example, change: Callable[[ir.Model, Rule], None]
) -> None:
    model = ir.from_onnx_text(example.text)
    infer_shapes(model)
    try:
        change(model, rule)
    except Unfit as reason:
        pytest.skip(f"not run: {reason}")
    original = model.clone()
    before = loaded(original)
    target = Target(name="cpu", onnxruntime=(1, 31, 1), opset=model.graph.opset_imports[""])
    journal = Journal()
    Engine(Context(model, target), Prover(model, evaluator()), journal).run("hostile", [rule])
    assert interface(model) == interface(original)
    names = [v.name for v in model.graph.inputs] + [o.name for n in model.graph for o in n.outputs if o.name]
    assert len(names) == len(set(names))
    if before is None:
        return
    after = loaded(model)
    assert after is not None, "the result does not load where the graph did"
    given = random_inputs(original)
    if given is None:
        return
    try:
        expected = before(given)
    except Exception:
        return
    for old, new in zip(expected, after(given), strict=True):
        assert equal(old, new)


def test_the_changes_are_made_and_rules_still_fire_on_some() -> None:
    """The graphs above are not all declined: most changes leave something to fuse."""
    fired: dict[str, int] = {}
    for rule in RULES[:12]:
        example = next(e for e in rule.examples if e.fires)
        for change in HOSTILE:
            model = ir.from_onnx_text(example.text)
            infer_shapes(model)
            try:
                change(model, rule)
            except Unfit:
                continue
            target = Target(name="cpu", onnxruntime=(1, 31, 1), opset=model.graph.opset_imports[""])
            engine = Engine(Context(model, target), Prover(model, evaluator()), Journal())
            fired[change.__name__] = fired.get(change.__name__, 0) + engine.run("hostile", [rule])
    assert sum(n > 0 for n in fired.values()) >= len(HOSTILE) // 2, fired


def test_the_examples_are_checked_by_onnx_too() -> None:
    """What a rule leaves passes onnx's checker wherever what it was given did."""
    compared = 0
    for rule in RULES:
        for example in [e for e in rule.examples if e.fires][:1]:
            model = ir.from_onnx_text(example.text)
            infer_shapes(model)
            target = Target(name="cpu", onnxruntime=(1, 31, 1), opset=model.graph.opset_imports[""])
            before = _checks(model)
            Engine(Context(model, target), Prover(model, evaluator()), Journal()).run("check", [rule])
            if before:
                compared += 1
                assert _checks(model), rule.code
    assert compared > len(RULES) // 2


def _checks(model: ir.Model) -> bool:
    plain = model.clone()
    canonical.expand_all(plain)
    if any(n.domain == "" and n.op_type == "SimplifiedLayerNormalization" for n in plain.graph):
        return True  # onnxruntime's own operator in the standard domain
    try:
        onnx.checker.check_model(ir.to_proto(plain))
    except onnx.checker.ValidationError:
        return False
    return True
