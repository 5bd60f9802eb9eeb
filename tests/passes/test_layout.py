"""Layout rules: targets that constants can state, and those they cannot."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.passes import layout
from deployml.passes.graph import census
from deployml.passes.layout.target import expand_target, reshape_target

from .rewriting import parsed, rewrite

B, S = ir.SymbolicDim("B"), ir.SymbolicDim("S")


@pytest.mark.parametrize(
    ("source", "wanted", "target"),
    [
        ([B, S, 64], [B, S, 4, 16], [0, 0, 4, 16]),
        ([B, 2, 2, S, 16], [B, 4, S, 16], [0, 4, -1, 16]),
        ([B, S, 64], [B * S, 64], [-1, 64]),
        ([B * S, 64], [B, S, 64], None),
        ([B, S], [S, B], None),
        ([2, 3], [0, 3], None),
        (None, [B], None),
    ],
)
def test_reshape_targets(source: list | None, wanted: list, target: list[int] | None) -> None:
    assert reshape_target(source, wanted) == target


@pytest.mark.parametrize(
    ("source", "wanted", "target"),
    [
        ([B, 2, 1, S, 16], [B, 2, 3, S, 16], [1, 1, 3, 1, 1]),
        ([1, 8], [B, 8], None),
        ([8], [2, 8], [2, 1]),
    ],
)
def test_expand_targets(source: list, wanted: list, target: list[int] | None) -> None:
    assert expand_target(source, wanted) == target


def test_splitting_and_merging_heads_cancels() -> None:
    model = parsed(
        "float[B,S,64] x",
        "float[B,S,64] y",
        "n = Neg (x) h = Reshape (n, split) t = Transpose <perm = [0, 2, 1, 3]> (h) "
        "u = Transpose <perm = [0, 2, 1, 3]> (t) m = Reshape (u, merged) y = Abs (m)",
        constants="int64[4] split = {0, 0, 4, 16}, int64[3] merged = {0, 0, -1}",
    )
    rewrite(model, layout.RULES)
    assert census(model) == {"Abs": 1, "Neg": 1}


def test_a_slice_that_reverses_is_no_no_op() -> None:
    model = parsed(
        "float[4] x",
        "float[4] y",
        "h = Neg (x) r = Slice (h, end, front, axis, step) y = Abs (r)",
        constants="int64[1] end = {-1}, int64[1] front = {-9223372036854775807}, int64[1] axis = {0}, "
        "int64[1] step = {-1}",
    )
    rewrite(model, layout.RULES)
    assert census(model)["Slice"] == 1


def test_names_and_order_of_the_interface_survive() -> None:
    model = parsed(
        "float[B,S] x",
        "float[B,S] y, float[B,S] z",
        "h = Neg (x) y = Reshape (h, same) z = Identity (h)",
        constants="int64[2] same = {0, 0}",
    )
    rewrite(model, layout.RULES)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert [v.name for v in model.graph.outputs] == ["y", "z"]
    assert len({id(v) for v in model.graph.outputs}) == 2
    assert all(v.dtype == ir.DataType.FLOAT for v in model.graph.outputs)
