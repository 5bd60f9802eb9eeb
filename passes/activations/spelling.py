"""What the GELU spellings share: the outer product ``0.5 * x * (1 + f(x))`` and the operators that replace it."""

from __future__ import annotations

import onnx_ir as ir

from ..graph import Builder, op_name, producer, scalar
from ..look import consumers, past_identity
from ..rule import Declined

__all__ = ["emit_gelu", "factors_of", "gelu_tail"]


def gelu_tail(gate: ir.Value, x: ir.Value) -> ir.Value | None:
    """The product of a gate with x and one half, in any grouping, found downwards from the gate.

    Returns:
        The product, or None when the gate is not multiplied by x.

    Raises:
        Declined: "constant" when it is, but with another factor than one half.
    """
    value = gate
    wrong: tuple[float, ir.Node] | None = None
    for _ in range(3):
        readers = [n for n in consumers(value) if op_name(n) in ("Mul", "Div")]
        if len(readers) != 1 or (value.is_graph_output()):
            break
        value = readers[0].outputs[0]
        vectors, constant = factors_of(value, stop=(gate, x))
        if len(vectors) == 2 and {id(v) for v in vectors} == {id(gate), id(x)}:
            if constant == 0.5:
                return value
            wrong = (constant, readers[0])
    if wrong is not None:
        raise Declined("constant", f"expected 0.5 * x * (1 + f(x)), found the factor {wrong[0]:.5g}", at=wrong[1])
    return None


def factors_of(value: ir.Value, *, stop: tuple[ir.Value, ...] = ()) -> tuple[list[ir.Value], float]:
    """Write a value as a product: the factors that are no constants, and the product of those that are."""
    vectors: list[ir.Value] = []
    constant = 1.0
    work = [value]
    while work:
        current = past_identity(work.pop())
        node = producer(current, "Mul", "Div")
        if node is None or any(current is s for s in stop) or len(vectors) > 4:
            vectors.append(current)
            continue
        left, right = node.inputs
        assert left is not None and right is not None
        number = scalar(right)
        if node.op_type == "Div":
            if number is None or number == 0:
                vectors.append(current)
                continue
            constant /= float(number)
            work.append(left)
            continue
        for operand in (left, right):
            known = scalar(operand)
            if known is None:
                work.append(operand)
            else:
                constant *= float(known)
    return vectors, constant


def emit_gelu(
    g: Builder, x: ir.Value, dtype: ir.DataType, *, standard: bool, approximate: str | None = None
) -> ir.Value:
    """One GELU node: ai.onnx Gelu where the opset has it, else onnxruntime's Gelu or FastGelu."""
    if standard:
        return g.op("Gelu", x, approximate=approximate, dtype=dtype, shape=x.shape)
    op = "com.microsoft::FastGelu" if approximate == "tanh" else "com.microsoft::Gelu"
    return g.op(op, x, dtype=dtype, shape=x.shape)
