"""Attention inside the bodies of If and Loop: fused there, and never by reaching across a body."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.custom_ops import register
from deployml.passes import pipeline
from deployml.passes.journal import Journal

from .core_graphs import CPU, feeds, run

_HEAD = """<ir_version: 9, opset_import: ["" : 20]>
g (bool which, int64 n, float[B,4,S,16] q, float[B,4,S,16] k, float[B,4,S,16] v) => (float[B,4,S,16] y) {"""
_SCORES = "kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, kt) "
_OTHER = "else_branch = two () => (float[B,4,S,16] e) { e = Identity (q) }>"
_LOOPED = """d = Identity (c) kt = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (x, kt) p = Softmax <axis = -1> (s)
    r = MatMul (p, v)"""

FUSED = {
    "branch": f"""{_HEAD} y = If (which) <then_branch = one () => (float[B,4,S,16] r) {{
        {_SCORES} p = Softmax <axis = -1> (s) r = MatMul (p, v) }}, {_OTHER} }}""",
    "keys from outside": f"""{_HEAD} kt = Transpose <perm = [0, 1, 3, 2]> (k)
        y = If (which) <then_branch = one () => (float[B,4,S,16] r) {{
        s = MatMul (q, kt) p = Softmax <axis = -1> (s) r = MatMul (p, v) }}, {_OTHER} }}""",
    "loop": f"""{_HEAD} y = Loop (n, which, q) <body = one (int64 i, bool c, float[B,4,S,16] x) =>
        (bool d, float[B,4,S,16] r) {{ {_LOOPED} }}> }}""",
}
ACROSS = {
    "scores from outside": f"""{_HEAD} {_SCORES} t = Abs (s)
        z = If (which) <then_branch = one () => (float[B,4,S,16] r) {{
        p = Softmax <axis = -1> (s) r = MatMul (p, v) }}, {_OTHER} m = MatMul (t, v) y = Add (m, z) }}""",
    "weights from outside": f"""{_HEAD} {_SCORES} p = Softmax <axis = -1> (s)
        y = If (which) <then_branch = one () => (float[B,4,S,16] r) {{
        w = Neg (v) r = MatMul (p, w) }}, {_OTHER} }}""",
}


def _fused(text: str) -> tuple[ir.Model, Journal]:
    outcome = pipeline.run(
        ir.from_onnx_text(text),
        CPU,
        options=pipeline.Options(simplify=False),
        configure=register,
    )
    return outcome.model, outcome.journal


def _same(text: str, model: ir.Model) -> None:
    plain = ir.from_onnx_text(text)
    for which in (True, False):
        given = feeds(plain) | {"which": np.array(which), "n": np.array(2)}
        assert np.allclose(run(model, given)[0], run(plain, given)[0], atol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_attention_in_a_body_is_fused_there(name: str) -> None:
    model, journal = _fused(FUSED[name])
    assert [s.status for s in journal.sites] == ["fused"]
    assert not [n for n in model.graph if "Attention" in n.op_type], "the node stays in its body"
    _same(FUSED[name], model)


@pytest.mark.parametrize("name", ACROSS)
def test_nothing_reaches_across_a_body(name: str) -> None:
    model, journal = _fused(ACROSS[name])
    assert len(journal.sites) == 1
    assert journal.sites[0].status == "fused" or journal.sites[0].reason
    _same(ACROSS[name], model)
