"""A softmax over scores that a layer gives is named in the report; routers and classifiers are not."""

from __future__ import annotations

import pytest

from deployml.custom_ops import register
from deployml.passes import pipeline

from .core_graphs import CPU
from .rewriting import parsed

_INPUTS = "float[B,S,16] x, float[B,T,16] m"
_CONSTANTS = (
    "float[16,1] w = {" + ", ".join(["0.5"] * 16) + "}, int64[1] ax = {1}, int64[1] last = {-1}, int64[1] two = {2}, "
    "float half = {0.5}, float[16,16] big = {" + ", ".join(["0.1"] * 256) + "}"
)
WEIGH = {
    "additive attention": """a = Unsqueeze (x, two) b = Unsqueeze (m, ax) t = Add (a, b) h = Tanh (t) e = MatMul (h, w)
        s = Squeeze (e, last) p = Softmax <axis = -1> (s) y = MatMul (p, m)""",
    "pooling": """s = MatMul (x, w) p = Softmax <axis = 1> (s) z = Mul (p, x) y = ReduceSum (z, ax)""",
    "pooling by a product": """s = MatMul (x, w) p = Softmax <axis = 1> (s) q = Mul (p, half)
        t = Transpose <perm = [0,2,1]> (q) y = MatMul (t, x)""",
    "linear attention": """k = MatMul (m, big) p = Softmax <axis = 1> (k) t = Transpose <perm = [0,2,1]> (p)
        c = MatMul (t, m) y = MatMul (x, c)""",
}
OTHER = {
    "classifier": "h = MatMul (x, big) y = Softmax <axis = -1> (h)",
    "router": """h = MatMul (x, big) p = Softmax <axis = -1> (h) v, i = TopK (p, two) z = ReduceSum (v, last)
        y = Mul (x, z)""",
    "gate": "h = MatMul (x, big) p = Softmax <axis = -1> (h) y = Mul (p, x)",
    "layer behind it": "h = MatMul (x, big) p = Softmax <axis = -1> (h) y = MatMul (p, big)",
    "attention": """t = Transpose <perm = [0,2,1]> (m) s = MatMul (x, t) p = Softmax <axis = -1> (s)
        y = MatMul (p, m)""",
}


def _notes(body: str) -> list[str]:
    model = parsed(_INPUTS, "float y", body, constants=_CONSTANTS)
    model.graph.outputs[0].shape = None
    return [n for n in pipeline.run(model, CPU, configure=register).journal.notes if "no products of queries" in n]


@pytest.mark.parametrize("form", WEIGH)
def test_weights_from_a_layer_are_named(form: str) -> None:
    (note,) = _notes(WEIGH[form])
    assert note.startswith("A softmax weighs")


@pytest.mark.parametrize("form", OTHER)
def test_nothing_else_is(form: str) -> None:
    assert not _notes(OTHER[form])
