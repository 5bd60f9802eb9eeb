"""Which axes must be of one size, and proofs that only such sizes make honest."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.passes.cleanup import infer_shapes
from deployml.passes.example_text import graph_text
from deployml.passes.graph import Builder
from deployml.passes.proof import Proof, Prover
from deployml.passes.rule import Replacement, Safety
from deployml.passes.sizes import apply_ties, tied

from .core_graphs import evaluator


def model_of(inputs: str, body: str, results: str = "float y") -> ir.Model:
    model = ir.from_onnx_text(graph_text(inputs, results, body))
    infer_shapes(model)
    return model


@pytest.mark.parametrize(
    ("inputs", "body", "expected"),
    [
        ("float[b,s,4] x, float[d,e,4] z", "y = Add (x, z)", {"d": "b", "e": "s"}),
        ("float[b,s] x, float[d] z, float[e] w", "t = Mul (x, z) y = Add (t, w)", {"d": "s", "e": "s"}),
        ("float[b,5] x, float[d] z", "y = Add (x, z)", {"d": 5}),
        ("float[b,1] x, float[d,e] z", "y = Sub (x, z)", {"d": "b"}),
        ("float[b,s,t] x, float[d,e,4] z", "y = MatMul (x, z)", {"d": "b", "e": "t"}),
        ("float[b,s] x, float[d,e] z", 'y = Einsum <equation = "ij,jk->ik"> (x, z)', {"d": "s"}),
        ("float[b,s] x, float[d,s] z", "y = Concat <axis = 0> (x, z)", {}),
    ],
)
def test_axes_that_meet_are_of_one_size(inputs: str, body: str, expected: dict[str, str | int]) -> None:
    model = model_of(inputs, body)
    names = [str(d.value) for v in model.graph.inputs for d in v.shape or () if isinstance(d, ir.SymbolicDim)]
    found = tied(model.graph, list(dict.fromkeys(names)))
    assert {name: d if isinstance(d, int) else d.value for name, d in found.items()} == expected


def test_sizes_follow_what_they_are_tied_to() -> None:
    assert apply_ties({"d": ir.SymbolicDim("s"), "e": 5}, {"s": 3, "d": 7, "e": 2}) == {"s": 3, "d": 3, "e": 5}


def wrong(inputs: str, body: str, change: str) -> Proof:
    """The proof of replacing the last node's result by what another operator gives of its first input."""
    model = model_of(inputs, body)
    node = list(model.graph)[-1]
    g = Builder(model.graph, prefix="wrong", like=node)
    made = g.op(change, *[v for v in node.inputs if v is not None][:1], dtype=ir.DataType.FLOAT)
    proof = Prover(model, evaluator()).prove(Replacement(old=[node.outputs[0]], new=[made]), g, Safety.ROUNDING)
    g.discard()
    return proof


def test_names_that_inference_made_up_do_not_hide_a_fault() -> None:
    """Drawn apart, d and e would fit b and s at 1 alone, where a transposed tensor is itself."""
    proof = wrong("float[b,s] x, float[d,e] z", "t = Add (x, z) y = Identity (t)", "Transpose")
    assert not proof.ok and "shape" in proof.detail


def test_an_axis_that_only_ran_at_one_is_not_proven() -> None:
    """A Squeeze runs where the axis is 1; what it would be elsewhere was never seen."""
    body = "t = Squeeze (x, axes) y = Identity (t)"
    model = ir.from_onnx_text(graph_text("float[b,s] x", "float y", body, constants="int64[1] axes = {0}"))
    node = next(iter(model.graph))
    g = Builder(model.graph, prefix="same", like=node)
    made = g.op("Squeeze", *node.inputs, dtype=ir.DataType.FLOAT)
    proof = Prover(model, evaluator()).prove(Replacement(old=[node.outputs[0]], new=[made]), g, Safety.EXACT)
    g.discard()
    assert not proof.ok and proof.method == "not-run"
    assert "runs on no size of b, s but 1" in proof.detail
