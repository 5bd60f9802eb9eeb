"""Proofs try integers on both sides of every constant that is compared with: no padding pattern shows those."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes.draw import SIZES, bind, plans, random_feeds
from deployml.passes.graph import Builder
from deployml.passes.notable import notable
from deployml.passes.proof import Proof, Prover
from deployml.passes.rule import Safety

from .core_graphs import evaluator, model_of
from .core_rules import rebuilt

#: Name to (statements for "mask", statements for a "wrong" one, which agrees on every padding pattern of 0 and 1).
PAIRS = {
    "padding-id": ("e = Equal (ids, pad)\n  f = Not (e)", "g = Equal (ids, next)\n  w = Not (g)"),
    "padding-id-ignored": ("e = Equal (ids, pad)\n  f = Not (e)", "w = Equal (ids, ids)"),
    "order-for-equality": ("e = Equal (ids, pad)\n  f = Not (e)", "w = Less (ids, pad)"),
    "bound": ("f = Less (ids, pad)", "w = LessOrEqual (ids, pad)"),
    "sign": ("e = Equal (ids, none)\n  f = Not (e)", "w = Greater (ids, none)"),
    "negative-id": ("e = Equal (ids, minus)\n  f = Not (e)", "w = GreaterOrEqual (ids, none)"),
    "small-id": ("e = Equal (ids, three)\n  f = Not (e)", "w = Equal (ids, ids)"),
    "remainder": (
        "m1 = Mod (ids, three)\n  f = Equal (m1, none)",
        "m2 = Mod (ids, six)\n  w = Equal (m2, none)",
    ),
    "a-float-in-between": (
        "x = Cast <to = 1> (ids)\n  f = Less (x, half)",
        "x2 = Cast <to = 1> (ids)\n  w = Less (x2, more)",
    ),
    "table": (
        "x = Gather (table, ids)\n  f = Cast <to = 9> (x)",
        "x2 = Gather (other, ids)\n  w = Cast <to = 9> (x2)",
    ),
    "moved-table": (
        "i = Add (ids, three)\n  j = Unsqueeze (i, last)\n  x = Gather (table, j)\n  y1 = Squeeze (x, last)\n"
        "  f = Cast <to = 9> (y1)",
        "x2 = Gather (other, j)\n  y2 = Squeeze (x2, last)\n  w = Cast <to = 9> (y2)",
    ),
    "computed-index": (
        "n = CumSum (ids, place)\n  x = Gather (table, n)\n  z = Equal (ids, two)\n  nz = Not (z)\n"
        "  y1 = Cast <to = 9> (x)\n  f = And (y1, nz)",
        "w = Cast <to = 9> (x)",
    ),
}
#: The same where rows are compared with columns.
SQUARES = {
    "segments": ("mask = Equal (r, c)", "a = Min (r, one)\n  b = Min (c, one)\n  wrong = Equal (a, b)"),
    "distance": (
        "d = Sub (r, c)\n  a = Abs (d)\n  mask = Less (a, three)",
        "d2 = Sub (r, c)\n  a2 = Abs (d2)\n  wrong = Less (a2, six)",
    ),
    "blocks": (
        "a = Div (r, three)\n  b = Div (c, three)\n  mask = Equal (a, b)",
        "a2 = Div (r, six)\n  b2 = Div (c, six)\n  wrong = Equal (a2, b2)",
    ),
}
TABLE = ",".join(["1"] * 11 + ["0"])


def _model(right: str, wrong: str, dtype: str, name: str = "mask") -> ir.Model:
    ids = f"{dtype}[B,S] ids"
    return model_of(
        f"""<ir_version: 10, opset_import: ["" : 20, "deployml.canonical" : 1]>
call (float[B,4,S,16] q, {ids}) => (float[B,4,S,16] y, bool[B,1,Q,S] wrong)
<{dtype} pad = {{50256}}, {dtype} next = {{50257}}, {dtype} none = {{0}}, {dtype} one = {{1}}, {dtype} two = {{2}},
 {dtype} three = {{3}}, {dtype} six = {{6}}, {dtype} minus = {{-100}}, float half = {{2.5}}, float more = {{3.5}},
 {dtype}[12] table = {{{TABLE}}}, {dtype}[12] other = {{1,1,1,1,1,1,1,1,1,1,1,1}}, int64 place = {{1}},
 int64[1] last = {{-1}}, int64[2] middle = {{1,2}}, int64[2] rows = {{1,3}}> {{
  r = Unsqueeze (ids, rows)
  c = Unsqueeze (ids, middle)
  {right}
  {wrong}
  [site] y = deployml.canonical.Attention <scale = 0.25, causal = "none", empty_rows = "zero"> (q, q, q, {name})
}}"""
    )


def _keys(statements: str, result: str, flags: str) -> str:
    return f"{statements}\n  {result} = Unsqueeze ({flags}, middle)"


def _verdict(model: ir.Model, inputs: dict[int, ir.Value | None]) -> Proof:
    node = next(n for n in model.graph if n.name == "site")
    g = Builder(model.graph, prefix="t", like=node)
    proof = Prover(model, evaluator()).prove(rebuilt(node, g, inputs), g, Safety.ROUNDING)
    g.discard()
    return proof


def _value(model: ir.Model, name: str) -> ir.Value:
    return next(o for n in model.graph for o in n.outputs if o.name == name)


@pytest.mark.parametrize("dtype", ("int64", "int32"))
@pytest.mark.parametrize("pair", (*PAIRS, *SQUARES))
def test_a_rewrite_that_is_wrong_for_some_ids_alone_is_seen(pair: str, dtype: str) -> None:
    if pair in PAIRS:
        right, wrong = _keys(PAIRS[pair][0], "mask", "f"), _keys(PAIRS[pair][1], "wrong", "w")
    else:
        right, wrong = SQUARES[pair]
    model = _model(right, wrong, dtype)
    proof = _verdict(model, {3: _value(model, "wrong")})
    assert not proof.ok and proof.method == "executed", proof


@pytest.mark.parametrize("pair", (*PAIRS, *SQUARES))
def test_the_same_mask_again_is_proven(pair: str) -> None:
    """No id is out of the range of a table, whatever computes the index: the old form runs on all that is drawn."""
    if pair in PAIRS:
        right, wrong = _keys(PAIRS[pair][0], "mask", "f"), _keys(PAIRS[pair][1], "wrong", "w")
    else:
        right, wrong = SQUARES[pair]
    proof = _verdict(_model(right, wrong, "int64"), {})
    assert proof.ok, proof


def test_ids_are_drawn_alike_every_time_and_within_their_tables() -> None:
    model = _model(_keys(PAIRS["table"][0], "mask", "f"), "wrong = Identity (mask)", "int64")
    inputs, nodes = list(model.graph.inputs), list(model.graph)
    ids = notable(inputs, nodes)
    assert ids is not None
    drawn = [random_feeds(inputs, {"B": 24, "S": 7}, np.random.default_rng(seed), 0, ids=ids)["i1"] for seed in (1, 2)]
    assert np.array_equal(*drawn)
    assert drawn[0].min() == 0 and drawn[0].max() == 11


def test_graphs_without_integers_have_no_case_of_ids() -> None:
    model = model_of(
        """<ir_version: 10, opset_import: ["" : 20]>
g (float[B,S] x, bool[B,S] m) => (float[B,S] y) { y = Where (m, x, x) }"""
    )
    inputs = list(model.graph.inputs)
    assert notable(inputs, list(model.graph)) is None
    assert all(plan.ids is None for plan in plans(inputs, list(model.graph), ()))
    assert bind(inputs, SIZES[0]) == {"B": 2, "S": 5}
