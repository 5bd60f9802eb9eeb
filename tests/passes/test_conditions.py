"""Masks in several words: which are one condition, and which must never be taken for one."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.passes import pipeline
from deployml.passes.attention.conditions import literals
from deployml.passes.example_text import graph_text

from .core_graphs import CPU

_INPUTS = "bool[S,T] a, bool[S,T] b, float[S,T] x"


def values(body: str, constants: str = "") -> dict[str, ir.Value]:
    model = ir.from_onnx_text(graph_text(_INPUTS, "bool[S,T] y", f"{body} y = And (a, b)", constants=constants))
    made = {str(v.name): v for node in model.graph for v in node.outputs}
    return made | {str(v.name): v for v in model.graph.inputs}


@pytest.mark.parametrize(
    "body",
    [
        "c = And (a, b) d = And (b, a)",
        "c = And (a, b) n = Not (a) m = Not (b) o = Or (n, m) d = Not (o)",
        "c = Transpose <perm = [1, 0]> (a) d = Transpose <perm = [1, 0]> (a)",
        "n = Not (a) c = Not (n) d = Identity (a) e = Not (d)",
    ],
)
def test_one_condition_in_two_ways(body: str) -> None:
    found = values(body)
    other = found["d"] if "Identity" not in body else found["a"]
    assert literals(found["c"], True) == literals(other, True)
    assert literals(found["c"], True) != literals(other, False)


@pytest.mark.parametrize(
    "body",
    [
        "c = And (a, b) d = Or (a, b)",
        "c = Transpose <perm = [1, 0]> (a) d = Transpose <perm = [0, 1]> (a)",
        "c = Transpose <perm = [1, 0]> (a) d = Transpose <perm = [1, 0]> (b)",
        "c = Greater (x, one) d = Greater (x, two)",
        "c = Bernoulli <dtype = 9> (x) d = Bernoulli <dtype = 9> (x)",
        "c, e = Split <axis = 0, num_outputs = 2> (a) f, d = Split <axis = 0, num_outputs = 2> (a)",
    ],
)
def test_two_conditions_are_two(body: str) -> None:
    found = values(body, "float one = {1}, float two = {2}")
    assert literals(found["c"], True) != literals(found["d"], True)


_ATTENTION = """kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt) x = Where (a, s, low)
p = Softmax <axis = -1> (x) {blank} y = MatMul (z, k)"""
_QK = "float[B,4,S,16] q, float[B,4,T,16] k, bool[B,1,S,T] a, bool[B,1,S,T] b"


@pytest.mark.parametrize(
    ("blank", "status"),
    [
        ("n = Not (a) z = Where (n, nil, p)", "fused"),
        ("z = Where (a, p, nil)", "fused"),
        ("n = Not (a) z = Where (n, p, nil)", "declined"),  # what is left is what was forbidden
        ("c = And (a, b) z = Where (c, p, nil)", "declined"),  # the softmax had counted the keys of b
        ("c = Or (a, b) z = Where (c, p, nil)", "declined"),
    ],
)
def test_weights_are_blanked_by_the_mask_of_the_scores_alone(blank: str, status: str) -> None:
    constants = "float low = {-1e30}, float nil = {0}"
    text = graph_text(_QK, "float[B,4,S,16] y", _ATTENTION.format(blank=blank), constants=constants)
    outcome = pipeline.run(ir.from_onnx_text(text), CPU, options=pipeline.Options(simplify=False))
    (site,) = outcome.journal.sites
    assert site.status == status
    assert status == "fused" or site.reason == "weights-changed"
