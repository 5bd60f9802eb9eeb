"""Attention over the places of a feature map: heads split off the channels, rows and columns made one axis."""

from __future__ import annotations

import numpy as np
import pytest

from deployml.passes import attention
from deployml.passes.canonical import expand_all
from deployml.passes.graph import census

from .rewriting import outputs, parsed, rewrite

#: Heads join the batch: (B, N * 8, 6, 4) to (B, N, 8, 6, 4), to (B, N, 6, 4, 8), to (B * N, 24, 8).
_HEADS = """{0}1 = Reshape ({0}, split)
{0}2 = Transpose <perm = [0, 1, 3, 4, 2]> ({0}1)
{0}3 = Reshape ({0}2, join)
"""
_BODY = (
    "".join(_HEADS.format(name) for name in "qkv")
    + """kt = Transpose <perm = [0, 2, 1]> (k3)
s = MatMul (q3, kt)
p = Softmax <axis = -1> (s)
o = MatMul (p, v3)
o1 = Reshape (o, part)
o2 = Transpose <perm = [0, 1, 4, 2, 3]> (o1)
y = Reshape (o2, whole)"""
)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_heads_of_a_feature_map_are_counted_where_they_join_the_batch(heads: int) -> None:
    width = 8 * heads
    inputs = ", ".join(f"float[B,{width},6,4] {name}" for name in "qkv")
    constants = (
        f"int64[5] split = {{0, {heads}, 8, 6, 4}}, int64[3] join = {{-1, 24, 8}}, "
        f"int64[5] part = {{-1, {heads}, 6, 4, 8}}, int64[4] whole = {{-1, {width}, 6, 4}}"
    )
    model = parsed(inputs, f"float[B,{width},6,4] y", _BODY, constants=constants)
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, width, 6, 4)).astype(np.float32) for name in "qkv"}
    (expected,) = outputs(model, feeds)
    rewrite(model, attention.RECOGNISE)
    assert census(model)["deployml.canonical::Attention"] == 1
    (site,) = (n for n in model.graph if n.op_type == "Attention")
    assert [v.shape[1] for v in site.inputs[:3]] == [heads] * 3
    expand_all(model)
    np.testing.assert_allclose(outputs(model, feeds)[0], expected, rtol=0, atol=1e-5)


def test_heads_split_off_channels_that_join_the_batch_at_once_are_counted() -> None:
    """(B, N * 8, 8, 8) to (B * N, 8, 64), whose rows happen to be as many as a head is wide."""
    split = "{0}1 = Reshape ({0}, join)\n{0}2 = Transpose <perm = [0, 2, 1]> ({0}1)\n"
    body = (
        split.format("q")
        + "k1 = Reshape (k, join)\n"
        + split.format("v")
        + "s = MatMul (q2, k1)\np = Softmax <axis = -1> (s)\no = MatMul (p, v2)\n"
        + "o1 = Transpose <perm = [0, 2, 1]> (o)\ny = Reshape (o1, whole)"
    )
    constants = "int64[3] join = {-1, 8, 64}, int64[4] whole = {-1, 32, 8, 8}"
    model = parsed(
        ", ".join(f"float[B,32,8,8] {name}" for name in "qkv"), "float[B,32,8,8] y", body, constants=constants
    )
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 32, 8, 8)).astype(np.float32) for name in "qkv"}
    (expected,) = outputs(model, feeds)
    rewrite(model, attention.RECOGNISE)
    (site,) = (n for n in model.graph if n.op_type == "Attention")
    assert [v.shape[1] for v in site.inputs[:3]] == [4] * 3
    expand_all(model)
    np.testing.assert_allclose(outputs(model, feeds)[0], expected, rtol=0, atol=1e-5)
