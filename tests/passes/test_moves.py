"""Which columns of a tensor a chain of moving nodes leaves where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes.layout.moves import columns_of, moved_from

from .rewriting import parsed

ORDER = np.arange(24)


def found(body: str, *, shape: str = "B,S,24") -> np.ndarray | None:
    """The columns of x that y has."""
    constants = ", ".join(
        [
            "int64[5] split = {0, 0, 3, 2, 4}",
            "int64[3] same = {0, 0, 24}",
            "int64[3] flat = {0, 0, 8}",
            "int64[1] two = {2}",
            "int64 one = {1}",
        ]
    )
    model = parsed(f"float[{shape}] x, int64[3] asked", "float[B,S,K] y", body, constants=constants)
    y, x = model.graph.outputs[0], model.graph.inputs[0]
    assert moved_from(y)[-1] is x
    return columns_of(y, x)


def test_thirds_by_a_gather_of_the_middle() -> None:
    body = "  s = Reshape (x, split)\n  g = Gather <axis = 2> (s, one)\n  y = Reshape (g, flat)"
    np.testing.assert_array_equal(found(body), ORDER[8:16])


def test_thirds_by_a_transpose_and_a_split() -> None:
    body = """  s = Reshape (x, split)
  t = Transpose <perm = [2, 0, 1, 3, 4]> (s)
  a, b, c = Split <axis = 0, num_outputs = 3> (t)
  d = Squeeze (c)
  y = Reshape (d, flat)"""
    np.testing.assert_array_equal(found(body), ORDER[16:])


def test_columns_in_another_order() -> None:
    body = "  s = Reshape (x, split)\n  t = Transpose <perm = [0, 1, 2, 4, 3]> (s)\n  y = Reshape (t, same)"
    expected = ORDER.reshape(3, 2, 4).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(found(body), expected)


@pytest.mark.parametrize(
    "body",
    [
        "  y = Transpose <perm = [1, 0, 2]> (x)",  # rows change places
        "  y = Reshape (x, asked)",  # sizes that only the call knows
        "  y = Slice (x, two, flat, two)",  # more bounds than axes
    ],
)
def test_what_is_no_choice_of_columns(body: str) -> None:
    assert found(body) is None


def test_a_value_of_its_own_is_all_columns() -> None:
    value = ir.Value(name="x", shape=ir.Shape(["B", "S", 5]), type=ir.TensorType(ir.DataType.FLOAT))
    np.testing.assert_array_equal(columns_of(value, value), np.arange(5))
