"""Which softmax is an attention's: none is overlooked, and no router or classifier is taken for one."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.custom_ops import register
from deployml.passes import pipeline
from deployml.passes.attention.between import softmaxes
from deployml.passes.example_text import graph_text

from .core_graphs import CPU
from .rewriting import parsed

_QKV = "float[B,4,S,16] q, float[B,4,16,S] k, float[B,4,S,16] v"
_Y = "float[B,4,S,16] y"
_AX = "int64[1] ax = {-1}, float eps = {0.0001}"
_EXP = "s = MatMul (q, k) m = ReduceMax <keepdims=1> (s, ax) d = Sub (s, m) e = Exp (d) "
_MIX = "float[4,4] w = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6}"
_ROUTER = "float[8,2] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}"
_PIECES = "int64[1] zero = {0}, int64[1] one = {1}, int64[1] many = {1000}, int64[1] axis = {3}"
_CHUNKED = """s = MatMul (q, k) a = Slice (s, zero, one, axis) b = Slice (s, one, many, axis)
    c = Concat <axis = 3> (b, a) p = Softmax <axis = -1> (c) y = MatMul (p, v)"""

ATTENTION = {
    "plain": (_QKV, _Y, "s = MatMul (q, k) p = Softmax <axis = -1> (s) y = MatMul (p, v)", ""),
    "sums of products": (
        "float[B,4,S,1,16] q, float[B,4,1,S,16] k, float[B,4,1,S,16] v",
        _Y,
        """a = Mul (q, k) s = ReduceSum <keepdims = 0> (a, ax) p = Softmax <axis = -1> (s) u = Unsqueeze (p, ax)
        b = Mul (u, v) y = ReduceSum <keepdims = 0> (b, keys)""",
        "int64[1] ax = {-1}, int64[1] keys = {3}",
    ),
    "distances": (
        "float[B,4,S,1,16] q, float[B,4,1,S,16] k, float[B,4,S,16] v",
        _Y,
        """d = Sub (q, k) a = Mul (d, d) u = ReduceSum <keepdims = 0> (a, ax) r = Sqrt (u) s = Neg (r)
        p = Softmax <axis = -1> (s) y = MatMul (p, v)""",
        "int64[1] ax = {-1}",
    ),
    "sine on the way": (_QKV, _Y, "s = MatMul (q, k) t = Sin (s) p = Softmax (t) u = Abs (p) y = MatMul (u, v)", ""),
    "chunked": (_QKV, _Y, _CHUNKED, _PIECES),
    "over the queries": (
        "float[B,4,S,16] q, float[B,4,16,T] k, float[B,4,T,16] v",
        _Y,
        "s = MatMul (q, k) p = Softmax <axis = 2> (s) y = MatMul (p, v)",
        "",
    ),
    "over the queries, keys first": (
        "float[B,4,S,16] q, float[B,4,16,T] k, float[B,4,T,16] v",
        _Y,
        """s = MatMul (q, k) t = Transpose <perm = [0,1,3,2]> (s) p = Softmax <axis = -1> (t)
        u = Transpose <perm = [0,1,3,2]> (p) y = MatMul (u, v)""",
        "",
    ),
    "over the queries by letters": (
        "float[B,S,4,16] q, float[B,T,4,16] k, float[B,T,4,16] v",
        "float[B,S,4,16] y",
        """s = Einsum <equation = "bqhd,bkhd->bhqk"> (q, k) p = Softmax <axis = 2> (s)
        y = Einsum <equation = "bhqk,bkhd->bqhd"> (p, v)""",
        "",
    ),
    "written with an epsilon": (
        _QKV,
        _Y,
        _EXP + "t = ReduceSum <keepdims=1> (e, ax) u = Add (t, eps) p = Div (e, u) y = MatMul (p, v)",
        _AX,
    ),
    "written with a mask": (
        _QKV + ", float[B,1,1,S] mask",
        _Y,
        _EXP + "f = Mul (e, mask) t = ReduceSum <keepdims=1> (f, ax) p = Div (f, t) y = MatMul (p, v)",
        _AX,
    ),
    "one head mixed, as a column": (
        "float[B,1,8,16] q, float[B,1,16,8] k, float[B,1,8,16] v",
        "float[B,1,8,16] y",
        """s = MatMul (q, k) p = Softmax (s) r = Reshape (p, column) t = Gemm (r, w)
        u = Reshape (t, back) y = MatMul (u, v)""",
        "float[1,1] w = {0.7}, int64[2] column = {-1, 1}, int64[4] back = {-1, 1, 8, 8}",
    ),
    "heads mixed after": (
        _QKV,
        _Y,
        """s = MatMul (q, k) p = Softmax (s) r = Transpose <perm = [0,2,3,1]> (p) t = MatMul (r, w)
        u = Transpose <perm = [0,3,1,2]> (t) y = MatMul (u, v)""",
        _MIX,
    ),
    "heads mixed before": (
        _QKV,
        _Y,
        """s = MatMul (q, k) r = Transpose <perm = [0,2,3,1]> (s) t = MatMul (r, w)
        u = Transpose <perm = [0,3,1,2]> (t) p = Softmax (u) y = MatMul (p, v)""",
        _MIX,
    ),
    "heads mixed over rows": (
        _QKV,
        _Y,
        """s = MatMul (q, k) p = Softmax (s) r = Transpose <perm = [0,2,3,1]> (p) f = Reshape (r, rows)
        t = Gemm <transB = 1> (f, w) n = Shape (r) h = Reshape (t, n) u = Transpose <perm = [0,3,1,2]> (h)
        y = MatMul (u, v)""",
        _MIX + ", int64[2] rows = {-1, 4}",
    ),
    "one head mixed over rows": (
        "float[B,1,6,16] q, float[B,1,16,7] k, float[B,1,7,16] v",
        "float[B,1,6,16] y",
        """s = MatMul (q, k) p = Softmax (s) n = Shape (p) r = Reshape (p, last) f = Reshape (r, rows)
        t = Gemm (f, one) u = Reshape (t, n) y = MatMul (u, v)""",
        "float[1,1] one = {2.0}, int64[2] rows = {-1, 1}, int64[4] last = {0, 6, 7, 1}",
    ),
    "heads mixed by einsum": (
        _QKV,
        _Y,
        """s = MatMul (q, k) p = Softmax (s) t = Einsum <equation = "bhij,gh->bgij"> (p, w) y = MatMul (t, v)""",
        _MIX,
    ),
    "learned query": (
        "float[B,4,S] k, float[B,S,4] v",
        "float[B,4,4] y",
        "s = MatMul (w, k) p = Softmax (s) y = MatMul (p, v)",
        _MIX,
    ),
    "one sequence": (
        "float[S,8] q, float[8,T] k, float[T,8] v",
        "float[S,8] y",
        "s = MatMul (q, k) p = Softmax (s) y = MatMul (p, v)",
        "",
    ),
    "value on the left": (
        "float[B,S,8] q, float[B,8,S] k, float[B,8,S] v",
        "float[B,8,S] y",
        "s = MatMul (q, k) p = Softmax (s) t = Transpose <perm = [0,2,1]> (p) y = MatMul (v, t)",
        "",
    ),
    "of unknown rank": (
        "float[B,S,8] x",
        "float[B,S,8] y",
        "q = unheard.Of (x) k = Neg (q) s = MatMul (x, k) p = Softmax <axis = -1> (s) y = MatMul (p, q)",
        "",
    ),
    "queries last": (
        "float[B,S,8] k, float[B,8,S] q, float[B,8,S] v",
        "float[B,8,S] y",
        "s = MatMul (k, q) p = Softmax <axis = 1> (s) y = MatMul (v, p)",
        "",
    ),
}
OTHER = {
    "tokens weighted by a linear layer": (
        "float[B,S,8] x",
        "float[B,8] y",
        """s = MatMul (x, w) p = Softmax <axis = 1> (s) t = Mul (p, x) y = ReduceSum <keepdims = 0> (t, one)""",
        "float[8,1] w = {1,2,3,4,5,6,7,8}, int64[1] one = {1}",
    ),
    "router": (
        "float[B,S,8] x, float[B,S,2,8] experts",
        "float[B,S,1,8] y",
        "s = MatMul (x, w) p = Softmax (s) u = Unsqueeze (p, two) y = MatMul (u, experts)",
        _ROUTER + ", int64[1] two = {2}",
    ),
    "router by einsum": (
        "float[B,S,8] x, float[B,S,2,8] experts",
        "float[B,S,8] y",
        """s = Einsum <equation = "bsd,de->bse"> (x, w) p = Softmax (s)
        y = Einsum <equation = "bse,bsed->bsd"> (p, experts)""",
        _ROUTER,
    ),
    "router behind an attention": (
        "float[B,S,8] q, float[B,8,S] k, float[B,S,8] v, float[B,S,2,8] experts",
        "float[B,S,1,8] y",
        """a = MatMul (q, k) b = MatMul (a, v) s = MatMul (b, w) p = Softmax (s) u = Unsqueeze (p, two)
        y = MatMul (u, experts)""",
        _ROUTER + ", int64[1] two = {2}",
    ),
    "classifier": ("float[B,S,8] x", "float[B,S,2] y", "s = MatMul (x, w) y = Softmax (s)", _ROUTER),
    "similarities": (
        "float[B,8] q, float[8,T] k",
        "float[B,T] y",
        "s = MatMul (q, k) y = Softmax (s)",
        "",
    ),
    "pooling by a linear layer": (
        "float[B,S,8] x",
        "float[B,2,8] y",
        "s = MatMul (x, w) p = Softmax <axis = 1> (s) t = Transpose <perm = [0,2,1]> (p) y = MatMul (t, x)",
        _ROUTER,
    ),
    "share of a sum": (
        "float[B,S,S] x, float[B,S,8] v",
        "float[B,S,8] y",
        "t = ReduceSum <keepdims=1> (x, ax) p = Div (x, t) y = MatMul (p, v)",
        _AX,
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_an_attention_is_seen(name: str) -> None:
    inputs, results, body, constants = ATTENTION[name]
    assert len(list(softmaxes(parsed(inputs, results, body, constants=constants).graph))) == 1


@pytest.mark.parametrize("name", OTHER)
def test_another_softmax_is_none(name: str) -> None:
    inputs, results, body, constants = OTHER[name]
    assert not list(softmaxes(parsed(inputs, results, body, constants=constants).graph))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("chunked", "chunked-scores"),
        ("sums of products", "sum-of-products"),
        ("sine on the way", "weights-changed"),
        ("over the queries", "softmax-over-queries"),
        ("over the queries, keys first", "softmax-over-queries"),
        ("over the queries by letters", "softmax-over-queries"),
        ("written with an epsilon", "softmax-term"),
        ("written with a mask", "not-recognised"),
        ("heads mixed after", "weights-changed"),
        ("heads mixed before", "no-score-product"),
        ("heads mixed over rows", "weights-changed"),
    ],
)
def test_the_journal_ends_with_a_reason(name: str, reason: str) -> None:
    inputs, results, body, constants = ATTENTION[name]
    model = ir.from_onnx_text(graph_text(inputs, results, body, constants=constants))
    sites = pipeline.run(model, CPU, options=pipeline.Options(simplify=False)).journal.sites
    assert [(s.status, s.reason) for s in sites] == [("declined", reason)]


def test_what_changes_the_weights_is_named() -> None:
    inputs, results, body, constants = ATTENTION["sine on the way"]
    model = ir.from_onnx_text(graph_text(inputs, results, body, constants=constants))
    (site,) = pipeline.run(model, CPU, options=pipeline.Options(simplify=False)).journal.sites
    assert site.detail is not None and site.detail.endswith("value, by Abs")


@pytest.mark.parametrize("name", OTHER)
def test_the_journal_lists_nothing_else(name: str) -> None:
    inputs, results, body, constants = OTHER[name]
    model = ir.from_onnx_text(graph_text(inputs, results, body, constants=constants))
    assert not pipeline.run(model, CPU, options=pipeline.Options(simplify=False)).journal.sites


def test_what_was_fused_before_is_a_site_again() -> None:
    inputs, results, body, _ = ATTENTION["plain"]
    body = body.replace("p = Softmax", "t = Where (m, s, low) p = Softmax").replace("(s) y", "(t) y")
    text = graph_text(inputs + ", bool[1,4,1,S] m", results, body, constants="float low = {-inf}")
    first = pipeline.run(ir.from_onnx_text(text), CPU, options=pipeline.Options(simplify=False), configure=register)
    again = pipeline.run(first.model.clone(), CPU, options=pipeline.Options(simplify=False), configure=register)
    (was,), (site,) = first.journal.sites, again.journal.sites
    assert was.op == "deployml::FlashAttention_mask"
    assert (site.name, site.status, site.op) == (was.name, "fused", was.op)
    assert site.assumptions == was.assumptions == ("fully-masked-rows",)
