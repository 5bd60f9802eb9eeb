"""A float mask that reaches the scores through a product still forbids: its empty rows must not become NaN."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml import custom_ops
from deployml.passes import pipeline
from deployml.passes.example_text import graph_text

from .core_graphs import CPU, run

_INPUTS = "float[B,4,S,16] q, float[B,4,16,T] k, float[B,4,T,16] v, float[B,1,S,T] m, float[1] w"
_BODY = """s = MatMul (q, k) {bias} a = Add (s, b) x = Softmax <axis = -1> (a) n = IsNaN (x)
p = Where (n, zero, x) y = MatMul (p, v)"""


@pytest.mark.parametrize(
    "bias", ["b = Mul (m, two)", "b = Mul (two, m)", "b = Mul (m, w)", "c = Neg (m) b = Mul (c, less)"]
)
def test_a_scaled_float_mask_keeps_its_empty_rows_finite(bias: str) -> None:
    text = graph_text(
        _INPUTS,
        "float[B,4,S,16] y",
        _BODY.format(bias=bias),
        constants="float zero = {0}, float two = {2}, float less = {-2}",
    )
    rng = np.random.default_rng(0)
    given = {
        "q": rng.standard_normal((2, 4, 5, 16)).astype(np.float32),
        "k": rng.standard_normal((2, 4, 16, 7)).astype(np.float32),
        "v": rng.standard_normal((2, 4, 7, 16)).astype(np.float32),
        "m": np.where(rng.random((2, 1, 5, 7)) > 0.4, 0, -np.inf).astype(np.float32),
        "w": np.ones(1, np.float32),
    }
    given["m"][0, 0, 1] = -np.inf
    options = pipeline.Options(simplify=False, disabled=("own-attention",))
    outcome = pipeline.run(ir.from_onnx_text(text), CPU, options=options)
    (site,) = outcome.journal.sites
    assert (site.status, site.assumptions) == ("fused", ("fully-masked-rows",))
    (plain,), (fused,) = run(ir.from_onnx_text(text), given), run(outcome.model, given)
    assert np.isfinite(fused).all()
    some = np.isfinite(given["m"]).any(-1)[..., None].repeat(4, 1)
    assert np.allclose(np.where(some, plain, 0), np.where(some, fused, 0), atol=1e-6)


_FIXED = "float[B,4,3,16] q, float[B,4,16,3] k, float[B,4,3,16] v"
#: Positions of SAM: queries times a table.
_DECOMPOSED = 'h = Tanh (q) r = Einsum <equation = "bnsh,th->bnst"> (h, t)'
_ROWS = "float[1,1,3,3] c = {{0,{low},0,{low},0.5,0,0,0,0}}, float[3,16] t = {{{table}}}"


@pytest.mark.parametrize(
    ("low", "bias", "assumed"),
    [
        (-100, "b = Identity (c)", False),  # a window of Swin: low, and no key loses all its weight
        (-1e9, "b = Identity (c)", False),  # it forbids, and leaves a key in every row
        (-100, f"{_DECOMPOSED} b = Add (r, c)", False),
        (-1e9, f"{_DECOMPOSED} b = Add (r, c)", True),
    ],
)
def test_a_bias_that_cannot_forbid_rests_on_no_assumption(low: float, bias: str, assumed: bool) -> None:
    table = ",".join(str(round(0.1 * n - 2, 1)) for n in range(48))
    text = graph_text(
        _FIXED,
        "float[B,4,3,16] y",
        f"s = MatMul (q, k) {bias} a = Add (s, b) x = Softmax <axis = -1> (a) y = MatMul (x, v)",
        constants=_ROWS.format(low=low, table=table),
    )
    outcome = pipeline.run(
        ir.from_onnx_text(text), CPU, options=pipeline.Options(simplify=False), configure=custom_ops.register
    )
    (site,) = outcome.journal.sites
    assert site.status == "fused"
    assert site.assumptions == (("fully-masked-rows",) if assumed else ())


def test_two_masks_below_a_late_scale_name_the_rows_they_empty() -> None:
    """The proof moves its cut above the scale; what stood below it as a mask is one there too."""
    body = """s = MatMul (q, k)
low = Cast <to = 1> (inf)
empty = Cast <to = 1> (zero)
kept = Where (m, empty, low)
sizes = Shape <start = 2, end = 3> (q)
length = Squeeze (sizes)
i0 = Range (none, length, one)
i = Unsqueeze (i0, last)
j = Unsqueeze (i0, first)
ahead = LessOrEqual (j, i)
causal = Where (ahead, empty, low)
a = Add (s, causal)
b = Add (a, kept)
c = Add (b, table)
d = Mul (c, scale)
x = Softmax <axis = -1> (d)
y = MatMul (x, v)"""
    text = graph_text(
        "float[B,4,S,16] q, float[B,4,16,S] k, float[B,4,S,16] v, bool[B,1,S,S] m, float[4,S,S] table",
        "float[B,4,S,16] y",
        body,
        constants="float zero = {0}, float inf = {-inf}, float scale = {0.25}, int64 none = {0}, int64 one = {1}, "
        "int64[1] last = {-1}, int64[1] first = {0}",
    )
    outcome = pipeline.run(
        ir.from_onnx_text(text), CPU, options=pipeline.Options(simplify=False), configure=custom_ops.register
    )
    (site,) = outcome.journal.sites
    assert (site.status, site.assumptions) == ("fused", ("fully-masked-rows",))
