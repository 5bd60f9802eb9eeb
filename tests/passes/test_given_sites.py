"""Attention nodes of other tools, in every form of their inputs: lowered anew, proven against themselves, or kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from deployml import custom_ops
from deployml.passes import pipeline
from deployml.passes.evaluate import Evaluator
from deployml.passes.graph import census
from deployml.runtime.report import Site

from .core_graphs import CPU

B, S, T, P = 2, 5, 7, 3
_QKV = "float[B,S,64] q, float[B,T,64] k, float[B,T,64] v"
_SELF = "float[B,S,64] q, float[B,S,64] k, float[B,S,64] v"
_GROUPED = "float[B,S,64] q, float[B,S,32] k, float[B,S,32] v"
_LAST = """n = Shape <start = 1, end = 2> (q) last = Sub (n, one) b = Shape <start = 0, end = 1> (q)
  wide = Expand (last, b) lengths = Cast <to = 6> (wide) n32 = Cast <to = 6> (n) total = Squeeze (n32)"""
_RAGGED = """n = Shape <start = 1, end = 2> (q) kept = ReduceSum <keepdims = 0> (am, one) last = Sub (kept, one)
  lengths = Cast <to = 6> (last) n32 = Cast <to = 6> (n) total = Squeeze (n32)"""
_WEIGHTS = "float[64,192] w, float[192] wb, float[32,8] cos, float[32,8] sin"
_MHA, _GQA = "com.microsoft.MultiHeadAttention", "com.microsoft.GroupQueryAttention"

#: Name to (inputs, statements); the result is y, of (B, S, 64).
FUSED = {
    "mha, (B,T) mask": (_QKV + ", int32[B,T] am", f"y = {_MHA} <num_heads = 4> (q, k, v, , am)"),
    "mha, lengths": (_QKV + ", int32[B] kl", f"y = {_MHA} <num_heads = 4> (q, k, v, , kl)"),
    "mha, (B,S,T) mask": (_QKV + ", int32[B,S,T] am", f"y = {_MHA} <num_heads = 4> (q, k, v, , am)"),
    "mha, low fill": (
        _QKV + ", int32[B,T] am",
        f"y = {_MHA} <num_heads = 4, mask_filter_value = -3.4028234663852886e38> (q, k, v, , am)",
    ),
    "mha, attention bias": (_QKV + ", float[1,4,S,T] ab", f"y = {_MHA} <num_heads = 4> (q, k, v, , , ab)"),
    "mha, mask and bias": (
        _QKV + ", int32[B,T] am, float[B,1,S,T] ab",
        f"y = {_MHA} <num_heads = 4, scale = 0.3> (q, k, v, , am, ab)",
    ),
    "mha, causal": (_SELF, f"y = {_MHA} <num_heads = 4, unidirectional = 1> (q, k, v)"),
    "mha, causal with a mask": (
        _SELF + ", int32[B,S] am",
        f"y = {_MHA} <num_heads = 4, unidirectional = 1> (q, k, v, , am)",
    ),
    "mha, projection bias and mask": (
        _QKV + ", float[192] pb, int32[B,T] am",
        f"y = {_MHA} <num_heads = 4> (q, k, v, pb, am)",
    ),
    "mha, keys of a cache and mask": (
        "float[B,S,64] q, float[B,4,T,16] k, float[B,4,T,16] v, int32[B,T] am",
        f"y = {_MHA} <num_heads = 4> (q, k, v, , am)",
    ),
    "mha, past and bias": (
        _SELF + ", float[B,4,P,16] pk, float[B,4,P,16] pv, float[1,4,S,R] ab",
        f"y, nk, nv = {_MHA} <num_heads = 4> (q, k, v, , , ab, pk, pv)",
    ),
    "mha, causal past and bias": (
        _SELF + ", float[B,4,P,16] pk, float[B,4,P,16] pv, float[1,4,S,R] ab",
        f"y, nk, nv = {_MHA} <num_heads = 4, unidirectional = 1> (q, k, v, , , ab, pk, pv)",
    ),
    "mha, other value size and mask": (
        "float[B,S,64] q, float[B,T,64] k, float[B,T,32] v, int32[B,T] am",
        f"z = {_MHA} <num_heads = 4> (q, k, v, , am) y = Concat <axis = 2> (z, z)",
    ),
    "gqa, own heads": (
        _SELF,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4> (q, k, v, , , lengths, total)",
    ),
    "gqa, not causal": (
        _GROUPED,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 2, causal = 0> (q, k, v, , , lengths, total)",
    ),
    "gqa, packed": (
        "float[B,S,192] q",
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4> (q, , , , , lengths, total)",
    ),
    "gqa, softcap": (
        _GROUPED,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 2, softcap = 5.0> (q, k, v, , , lengths, total)",
    ),
    "gqa, smooth softmax": (
        _GROUPED,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 2, smooth_softmax = 1> "
        "(q, k, v, , , lengths, total)",
    ),
    "gqa, sink": (
        _GROUPED + ", float[4] sink",
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 2> (q, k, v, , , lengths, total, , , , , sink)",
    ),
    "gqa, bias": (
        _SELF + ", float[B,1,S,S] ab",
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4> (q, k, v, , , lengths, total, , , , ab)",
    ),
    "gqa, window": (
        _SELF,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4, local_window_size = 2> "
        "(q, k, v, , , lengths, total)",
    ),
    "gqa, ragged": (
        _SELF + ", int64[B,S] am",
        f"{_RAGGED} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4> (q, k, v, , , lengths, total)",
    ),
    "gqa, rotary": (
        _SELF,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4, do_rotary = 1> "
        "(q, k, v, , , lengths, total, cos, sin)",
    ),
    "gqa, interleaved rotary": (
        _SELF,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 4, do_rotary = 1, rotary_interleaved = 1> "
        "(q, k, v, , , lengths, total, cos, sin)",
    ),
    "packed, plain": ("float[B,S,64] q", "y = com.microsoft.Attention <num_heads = 4> (q, w, wb)"),
    "packed, (B,T) mask": (
        "float[B,S,64] q, int32[B,S] am",
        "y = com.microsoft.Attention <num_heads = 4> (q, w, wb, am)",
    ),
    "packed, lengths": (
        "float[B,S,64] q, int32[B] sl",
        "y = com.microsoft.Attention <num_heads = 4> (q, w, wb, sl)",
    ),
    "packed, (B,S,T) mask": (
        "float[B,S,64] q, int32[B,S,S] am",
        "y = com.microsoft.Attention <num_heads = 4, mask_filter_value = -1e30> (q, w, wb, am)",
    ),
    "packed, causal with a bias": (
        "float[B,S,64] q, float[1,4,S,S] ab",
        "y = com.microsoft.Attention <num_heads = 4, unidirectional = 1, scale = 0.2> (q, w, wb, , , ab)",
    ),
    "packed, sizes": (
        "float[B,S,64] q",
        "z = com.microsoft.Attention <num_heads = 4, qkv_hidden_sizes = [80, 80, 32]> (q, w, wb)"
        " y = Concat <axis = 2> (z, z)",
    ),
    "standard, mask of booleans": (
        "float[B,4,S,16] q4, float[B,2,T,16] k4, float[B,2,T,16] v4, bool[B,1,S,T] am",
        "z = Attention (q4, k4, v4, am) t = Transpose <perm = [0,2,1,3]> (z) y = Reshape (t, flat)",
    ),
    "standard, past": (
        "float[B,4,S,16] q4, float[B,4,S,16] k4, float[B,4,S,16] v4, float[B,4,P,16] pk, float[B,4,P,16] pv",
        "z, nk, nv = Attention <is_causal = 1> (q4, k4, v4, , pk, pv) t = Transpose <perm = [0,2,1,3]> (z)"
        " y = Reshape (t, flat)",
    ),
}

#: The operator of each family of FUSED.
BEFORE = {
    "mha": "com.microsoft::MultiHeadAttention",
    "gqa": "com.microsoft::GroupQueryAttention",
    "packed": "com.microsoft::Attention",
    "standard": "Attention",
}

#: Name to (inputs, statements, what the record says).
KEPT = {
    "shared heads": (
        _GROUPED,
        f"{_LAST} y, pk, pv = {_GQA} <num_heads = 4, kv_num_heads = 2> (q, k, v, , , lengths, total)",
        "already-best",
    ),
    "mha, plain": (_QKV, f"y = {_MHA} <num_heads = 4> (q, k, v)", "already-best"),
    "mha, keys of a cache": (
        "float[B,S,64] q, float[B,4,T,16] k, float[B,4,T,16] v",
        f"y = {_MHA} <num_heads = 4> (q, k, v)",
        "already-best",
    ),
    "gqa past": (
        _GROUPED + ", float[B,2,P,16] pk, float[B,2,P,16] pv, int32[B] sl, int32 total",
        f"y, nk, nv = {_GQA} <num_heads = 4, kv_num_heads = 2> (q, k, v, pk, pv, sl, total)",
        "cached",
    ),
    "scores as well": (_QKV, f"y, nk, nv, s = {_MHA} <num_heads = 4> (q, k, v)", "score-output"),
    "packed query, key and value": ("float[B,S,4,3,16] p", f"y = {_MHA} <num_heads = 4> (p)", "packed-layout"),
    "causal with other lengths": (
        _QKV,
        f"y = {_MHA} <num_heads = 4, unidirectional = 1> (q, k, v)",
        "causal-alignment",
    ),
    "starts and ends": (
        "float[B,S,64] q, int32[E] sl",
        "y = com.microsoft.Attention <num_heads = 4> (q, w, wb, sl)",
        "mask-form",
    ),
    "rotary in the projection": (
        "float[B,S,64] q",
        "y = com.microsoft.Attention <num_heads = 4, do_rotary = 1> (q, w, wb)",
        "rotary-inside",
    ),
}


def _model(inputs: str, body: str) -> ir.Model:
    more = "".join(f", float[B,4,R,16] {name}" for name in ("nk", "nv") if f"{name}," in body or f"{name} =" in body)
    more += ", float[B,4,S,T] s" if ", s =" in body else ""
    return ir.from_onnx_text(
        f"""<ir_version: 11, opset_import: ["" : 23, "com.microsoft" : 1]>
g ({inputs}, {_WEIGHTS}) => (float[B,S,64] y{more})
<int64[1] one = {{1}}, int64[3] flat = {{0, 0, 64}}> {{
  {body}
}}"""
    )


def _weights(model: ir.Model) -> ir.Model:
    """The model with random weights, and angles in the rotary tables."""
    rng = np.random.default_rng(1)
    angles = np.outer(np.arange(32), 1 / 10 ** np.arange(8)).astype(np.float32)
    made = {
        "w": rng.standard_normal((64, 192)).astype(np.float32) / 4,
        "wb": rng.standard_normal(192).astype(np.float32),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
    }
    for value in [v for v in model.graph.inputs if v.name in made]:
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(made[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model


def _feeds(model: ir.Model) -> dict[str, np.ndarray]:
    rng, sizes = np.random.default_rng(2), {"B": B, "S": S, "T": T, "P": P, "E": 2 * B, "R": P + S}
    made: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None
        shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape]
        array: Any = rng.standard_normal(shape)
        if str(value.name) in ("kl", "sl"):
            array = np.arange(shape[0]) + 2
        elif str(value.name) == "am":
            array = np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, (*shape[:-1], 1))
        made[str(value.name)] = np.asarray(array).astype(value.dtype.numpy())
    return made


def _run(model: ir.Model, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    return Evaluator(custom_ops.register).prepare(model)(given)


def _optimized(inputs: str, body: str) -> tuple[ir.Model, ir.Model, list[Site]]:
    model = _weights(_model(inputs, body))
    target = type(CPU)(name="cpu", onnxruntime=(1, 31, 1), opset=23)
    outcome = pipeline.run(
        model.clone(), target, options=pipeline.Options(simplify=False), configure=custom_ops.register
    )
    return model, outcome.model, outcome.journal.sites


@pytest.mark.parametrize("name", FUSED)
def test_a_node_of_another_tool_is_lowered_anew(name: str) -> None:
    model, made, sites = _optimized(*FUSED[name])
    (site,) = sites
    assert (site.status, site.origin) == ("fused", "op")
    assert site.error is not None, site.detail  # it was proven, so it was rewritten
    assert site.op in census(made) and site.op != BEFORE.get(name.split(",")[0])
    given = _feeds(model)
    for before, after in zip(_run(model, given), _run(made, given), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_as_it_is_says_why(name: str) -> None:
    inputs, body, reason = KEPT[name]
    model, made, sites = _optimized(inputs, body)
    (site,) = sites
    assert site.status == "fused" and site.error is None
    assert f"({reason}: " in (site.detail or "")
    before, after = ({n for n in census(m) if "Attention" in n} for m in (model, made))
    assert before == after
