"""What the judgement of a proof takes for equal, and what it takes for no evidence at all."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes.graph import Builder
from deployml.passes.judge import Worst, judge
from deployml.passes.proof import Prover
from deployml.passes.rule import Replacement, Safety
from deployml.passes.whole import difference

from .core_graphs import evaluator, model_of

SHAPE = (2, 3, 5)
FAR = np.array(1e9, np.float32)


def judged(old: np.ndarray, new: np.ndarray, exact: np.ndarray | None = None) -> tuple[str, Worst]:
    worst = Worst()
    said = judge([old], [new], None if exact is None else [exact], None, Safety.ROUNDING, (), worst)
    return said, worst


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_form_far_from_its_twin_grants_nothing_on_that_account(dtype: type[np.floating]) -> None:
    old = np.linspace(0.1, 1, 30, dtype=dtype).reshape(SHAPE)
    exact = old.astype(np.float64)[..., ::-1]
    assert judged(old, old, exact)[0] == ""
    assert "is off by" in judged(old, old[..., ::-1], exact)[0]
    assert "is off by" in judged(old, -old, exact)[0]


def test_outputs_without_a_finite_number_are_no_evidence() -> None:
    nothing = np.full(SHAPE, np.nan, np.float32)
    said, worst = judged(nothing, nothing.copy())
    assert (said, worst.ran) == ("", 0)
    said, worst = judged(np.ones(SHAPE, np.float32), np.ones(SHAPE, np.float32))
    assert (said, worst.ran) == ("", 1)


def test_a_rewrite_of_what_is_never_a_number_is_not_proven() -> None:
    model = model_of("""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,8] x) => (float[B,8] y) <float minus = {-1}> {
  a = Abs (x)
  n = Sub (minus, a)
  r = Sqrt (n)
  y = Sub (r, r)
}""")
    node = model.graph[-1]
    g = Builder(model.graph, prefix="t", like=node)
    made = Replacement(old=[node.outputs[0]], new=[g.op("Sqrt", g.op("Sub", model.graph.inputs[0], g.const(FAR)))])
    proof = Prover(model, evaluator()).prove(made, g, Safety.ROUNDING)
    assert (proof.ok, proof.method) == (False, "not-run"), proof
    assert "no finite number" in proof.detail


@pytest.mark.parametrize("wrong", ["Neg (d)", "Mul (d, zero)", "Identity (x)"])
def test_infinities_of_a_whole_graph_must_stand_where_they_stood(wrong: str) -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,8] x) => (float[B,8] y) <float zero = {{0}}> {{
  a = Exp (x)
  d = Div (a, zero)
  y = {last}
}}"""
    right = model_of(text.format(last="Identity (d)"))
    assert difference(right, model_of(text.format(last="Abs (d)")), evaluator()) is None
    assert difference(right, model_of(text.format(last=wrong)), evaluator()) is not None
