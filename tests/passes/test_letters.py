"""Letters of the axes of an Einsum."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from deployml.passes.letters import letters_of


def _einsum(equation: str, *shapes: list[int | str] | None) -> ir.Node:
    values = [ir.Value(name=f"v{i}", shape=None if s is None else ir.Shape(s)) for i, s in enumerate(shapes)]
    return ir.node("Einsum", values, {"equation": equation})


def test_an_ellipsis_becomes_letters_that_the_operands_share_from_the_right() -> None:
    left, right, result = letters_of(_einsum("...qd, ...kd -> ...qk", ["B", "W", "S", 8], ["W", "T", 8])) or []
    assert (len(left), len(right), len(result)) == (4, 3, 4)
    assert left[1] == right[0] == result[1] and left[0] == result[0] not in right
    assert (left[2:], right[1:], result[2:]) == ("qd", "kd", "qk")


@pytest.mark.parametrize(
    ("equation", "letters"),
    [("bqd,bkd", ["bqd", "bkd", "kq"]), ("ij,jk->ki", ["ij", "jk", "ki"]), ("...d,d->...", None)],
)
def test_a_result_left_out_and_an_unknown_rank(equation: str, letters: list[str] | None) -> None:
    unknown = "..." in equation
    assert letters_of(_einsum(equation, None if unknown else ["B"] * equation.index(","), ["D"])) == letters


def test_an_ellipsis_may_stand_for_nothing() -> None:
    assert letters_of(_einsum("...qd,...kd->...qk", ["S", 8], ["T", 8])) == ["qd", "kd", "qk"]
    assert letters_of(_einsum("...qd,kd->...qk", [8], ["T", 8])) is None
