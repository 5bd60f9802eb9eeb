"""Conditions for rows without keys: every spelling is seen, and nothing that only looks like one."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.passes.attention.empty_rows import asks_for_empty_rows

LEAST = "e = {test}\n  i = Cast <to = 6> (e)\n  m = ReduceMin <keepdims = 1> (i, {axis})\n  c = Cast <to = 9> (m)"
HOLD = {
    "all equal": LEAST.format(test="Equal (s, low)", axis="last"),
    "the maximum": "m = ReduceMax <keepdims = 1> (s, last)\n  c = Equal (m, low)",
    "the maximum is infinite": "m = ReduceMax <keepdims = 1> (s, third)\n  c = IsInf <detect_positive = 0> (m)",
    "not any above": (
        "g = Greater (s, low)\n  i = Cast <to = 6> (g)\n  m = ReduceMax <keepdims = 1> (i, last)\n"
        "  b = Cast <to = 9> (m)\n  c = Not (b)"
    ),
    "not any other": (
        "e = IsInf <detect_positive = 0> (s)\n  n = Not (e)\n  i = Cast <to = 6> (n)\n"
        "  m = ReduceMax <keepdims = 1> (i, last)\n  b = Cast <to = 9> (m)\n  c = Not (b)"
    ),
}
FAIL = {
    "any": LEAST.format(test="Equal (s, low)", axis="last").replace("ReduceMin", "ReduceMax"),
    "zeros": LEAST.format(test="Equal (s, zero)", axis="last"),
    "queries": LEAST.format(test="Equal (s, low)", axis="second"),
    "other scores": LEAST.format(test="Equal (t, low)", axis="last"),
    "either infinity": "m = ReduceMax <keepdims = 1> (s, last)\n  c = IsInf (m)",
    "the minimum": "m = ReduceMin <keepdims = 1> (s, last)\n  c = Equal (m, low)",
    "not all": (
        "g = Greater (s, low)\n  i = Cast <to = 6> (g)\n  m = ReduceMin <keepdims = 1> (i, last)\n"
        "  b = Cast <to = 9> (m)\n  c = Not (b)"
    ),
}


def asked(body: str) -> bool:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]>\n'
        "g (float[2,3,4] s, float[2,3,4] t) => (bool[2,3,1] c)\n"
        "<int64[1] last = {-1}, int64[1] third = {2}, int64[1] second = {1}, float low = {-inf}, float zero = {0}>\n"
        "{\n  " + body + "\n}"
    )
    return asks_for_empty_rows(model.graph.outputs[0], model.graph.inputs[0])


@pytest.mark.parametrize("body", HOLD.values(), ids=HOLD)
def test_every_spelling_is_seen(body: str) -> None:
    assert asked(body)


@pytest.mark.parametrize("body", FAIL.values(), ids=FAIL)
def test_what_asks_for_something_else_is_not(body: str) -> None:
    assert not asked(body)
