"""Dimensions out of files are read, never run."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import sympy

from deployml.passes.dim_expression import expression_of
from deployml.passes.symbols import at_least, ratio, same_dim

S = sympy.Symbol("s", integer=True, positive=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("s", S),
        ("2*s + 1", 2 * S + 1),
        ("(s + 1)//2", sympy.floor((S + 1) / 2)),
        ("floor(s/2 + 1/2)", sympy.floor(S / 2 + sympy.Rational(1, 2))),
        ("Mod(-s, 4)", sympy.Mod(-S, 4)),
        ("s % 4", sympy.Mod(S, 4)),
        ("Max(1, s - 2)", sympy.Max(1, S - 2)),
        ("s**2", S**2),
    ],
)
def test_what_sympy_writes_is_read(text: str, value: sympy.Expr) -> None:
    assert sympy.expand(expression_of(text) - value) == 0


@pytest.mark.parametrize(
    "text",
    [
        *(
            "seq len",
            "layer-1.out_d0",
            "a.__class__",
            "os.system",
            "/model/Add_d0",
            "",
            "s +",
            "1.5*s",
            "s if s else 2",
        ),
        *("__import__('os').system('true')", "open(s)", "(lambda: 1)()", "[s]", "s**s", "2**99999999", "s//0", "True"),
        "(" * 300 + "s" + ")" * 300,
    ],
)
def test_anything_else_is_a_name(text: str) -> None:
    assert expression_of(text) is None
    dim = ir.SymbolicDim(text)
    assert same_dim(dim, ir.SymbolicDim(text))
    assert not same_dim(dim, ir.SymbolicDim("s"))
    assert not at_least(dim, ir.SymbolicDim("s"))
    assert ratio([dim], [2]) is None


def test_no_file_can_have_a_dimension_run(tmp_path) -> None:
    trap = tmp_path / "trap"
    for text in (f"__import__('pathlib').Path('{trap}').touch()", f"exec(\"open('{trap}','w')\")"):
        same_dim(ir.SymbolicDim(text), ir.SymbolicDim("s"))
        ratio([ir.SymbolicDim(text)], [ir.SymbolicDim("s")])
    assert not trap.exists()
