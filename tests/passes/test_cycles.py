"""Attention whose value is computed from its own weights: no node can read what it gives."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes import attention
from deployml.passes.cycles import closes_cycle
from deployml.passes.graph import Builder, census

from .rewriting import declined, outputs, parsed, rewrite

_QKV = "float[B,4,S,16] q, float[B,4,16,S] k, float[B,4,S,S] v"
_BODIES = {
    "transposed weights": "t = Transpose <perm = [0,1,3,2]> (p) y = MatMul (p, t)",
    "by way of another operator": "u = Neg (p) n = Mul (u, v) y = MatMul (p, n)",
    "one step of an iteration for an inverse": """t = Transpose <perm = [0,1,3,2]> (p) z = Mul (t, half)
        x = MatMul (p, z) i = Sub (one, x) y = MatMul (z, i)""",
}


@pytest.mark.parametrize("body", _BODIES)
def test_weights_that_make_their_value_are_left_alone(body: str) -> None:
    model = parsed(
        _QKV,
        "float[B,4,S,S] y",
        "s = MatMul (q, k) p = Softmax <axis = -1> (s) " + _BODIES[body],
        constants="float half = {0.5}, float one = {1}",
    )
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, 5, 16), "k": (2, 4, 16, 5), "v": (2, 4, 5, 5)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    (expected,) = outputs(model, feeds)
    journal = rewrite(model, attention.RECOGNISE)  # sorts the graph, which fails where there is a cycle
    assert "own-result" in declined(journal)
    assert "deployml.canonical::Attention" not in census(model)
    np.testing.assert_allclose(outputs(model, feeds)[0], expected, rtol=0, atol=1e-5)


def test_only_what_reads_its_own_result_is_a_cycle() -> None:
    model = parsed("float[4] x", "float[4] y", "a = Neg (x) b = Abs (x) c = Exp (a) y = Add (b, c)")
    nodes = {n.op_type: n for n in model.graph}
    a, b, c = (nodes[op].outputs[0] for op in ("Neg", "Abs", "Exp"))
    g = Builder(model.graph, prefix="t", like=nodes["Add"], root=model.graph)
    first, second = g.op("Sin", c), g.op("Cos", b)
    assert closes_cycle([a, b], [first, second], g.nodes)  # Sin reads Exp, which reads what Sin replaces
    assert not closes_cycle([c, b], [first, second], g.nodes)  # the new nodes themselves may read the old ones
    g.discard()
