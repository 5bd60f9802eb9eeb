"""ATT002: Einsum of two operands written as one matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, dims, op_name
from ..letters import letters_of
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["EinsumProduct"]


@dataclass(frozen=True, slots=True)
class Facts:
    """Operands in product order, their permutations and the one of the result.

    ``ones`` are axes that only the left operand has: the right one gets a 1 there.
    """

    node: ir.Node
    left: ir.Value
    right: ir.Value
    left_perm: tuple[int, ...]
    right_perm: tuple[int, ...]
    result_perm: tuple[int, ...]
    ones: tuple[int, ...] = ()


class EinsumProduct(Rule):
    """An Einsum that is a batched matrix product under some order of axes.

    ## What it finds
    Einsum of two operands with one summed letter, one free letter on one side and one or more on the other, and
    every other letter in both operands and in the result. Any letters, any order: ``bqhd,bkhd->bhqk``,
    ``nbhd,mbhd->bhnm``, ``bhij,bjhd->bihd``, an ellipsis for what leads (``...qhd,...khd->...hqk``). Heads that
    share their keys (``bhid,bjd->bhij``) or share them in groups (``bqgrd,bkgd->bgrqk``) give the right operand
    axes of 1.

    ## Why
    Attention written with einsum becomes transposes and MatMul, the form the recognition reads.

    ## Before -> After
    ``Einsum(a, b)`` -> ``Transpose(MatMul(Transpose(a), Transpose(b)))``.

    ## When it declines
    ``einsum-shape``: three or more operands, a repeated letter, an ellipsis over an unknown rank, several free
    letters on both sides, several summed ones, or a constant beside several free ones (a projection); such an
    Einsum stays as it is.

    ## Numerics
    ROUNDING.

    ## References
    ONNX operators, Einsum-12.
    """

    code = "ATT002"
    name = "einsum-product"
    safety = Safety.ROUNDING
    anchors = frozenset({"Einsum"})
    emits = ("MatMul",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        equation = str(attribute(node, "equation", ""))
        letters = letters_of(node)
        if len(node.inputs) != 2 or letters is None:
            raise Declined("einsum-shape", f"'{equation}' is no product of two operands", at=node)
        left, right, result = letters
        first, second = node.inputs
        assert first is not None and second is not None
        if any(len(set(term)) != len(term) for term in (left, right, result)):
            raise Declined("einsum-shape", f"a letter is repeated in '{equation}'", at=node)
        if dims(first) is not None and len(dims(first) or ()) != len(left):
            raise Declined("einsum-shape", f"'{left}' does not fit the rank of its operand", at=node)
        free_left, free_right = _only(left, right, result), _only(right, left, result)
        swap = len(free_left) == 1 and len(free_right) > 1
        if len(free_left) == len(free_right) == 1:
            swap = result.index(free_left) > result.index(free_right)
        if swap:
            first, second, left, right = second, first, right, left
            free_left, free_right = free_right, free_left
        summed = "".join(c for c in left if c in right and c not in result)
        batch = "".join(c for c in result if c in left and c in right)
        if len(free_right) != 1 or not free_left or len(summed) != 1:
            raise Declined("einsum-shape", f"'{equation}' has several free or summed letters", at=node)
        if len(free_left) > 1 and any(_constant(v) for v in (first, second)):
            raise Declined("einsum-shape", f"'{equation}' is a projection", at=node)
        if set(left) != set(batch + free_left + summed) or set(right) != set(batch + free_right + summed):
            raise Declined("einsum-shape", f"'{equation}' sums a letter of one operand", at=node)
        if set(result) != set(batch + free_left + free_right):
            raise Declined("einsum-shape", f"'{equation}' has a letter in its result alone", at=node)
        row = _row(free_left, left if _weighs(first) else result)
        outer = [c for c in result if c in batch or (c in free_left and c != row)]
        leading = "".join(sorted(outer, key=lambda c: _is_fixed(first, left.index(c))))  # batch, then heads
        return Facts(
            node,
            first,
            second,
            tuple(left.index(c) for c in leading + row + summed),
            tuple(right.index(c) for c in leading + summed + free_right if c in right),
            tuple((leading + row + free_right).index(c) for c in result),
            tuple(i for i, c in enumerate(leading) if c not in right),
        )

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        left, right = _moved(g, facts.left, facts.left_perm), _moved(g, facts.right, facts.right_perm)
        right = _with_ones(g, right, facts.ones)
        shape = None
        if left.shape is not None and right.shape is not None:
            shape = [*map(_wider, list(left.shape)[:-2], list(right.shape)[:-2]), left.shape[-2], right.shape[-1]]
        product = g.op("MatMul", left, right, dtype=old.dtype, shape=shape)
        return Replacement(old=[old], new=[_moved(g, product, facts.result_perm)])


def _only(term: str, other: str, result: str) -> str:
    return "".join(c for c in term if c not in other and c in result)


def _row(free: str, order: str) -> str:
    """The letter of the rows: the last free one of the scores. The others go with the batch."""
    return max(free, key=order.index)


def _is_fixed(value: ir.Value, axis: int) -> bool:
    return isinstance((dims(value) or (None,) * (axis + 1))[axis], int)


def _weighs(value: ir.Value, steps: int = 6) -> bool:
    """Whether a value is a softmax, over operators that keep its axes."""
    for _ in range(steps):
        node = value.producer()
        if node is None or op_name(node) == "Softmax":
            return node is not None
        if op_name(node) not in ("Cast", "Identity", "Dropout", "Where", "Mul", "Div") or not node.inputs:
            return False
        following = node.inputs[2] if op_name(node) == "Where" else node.inputs[0]
        if following is None:
            return False
        value = following
    return False


def _constant(value: ir.Value) -> bool:
    return value.const_value is not None and not value.is_graph_input()


def _with_ones(g: Builder, value: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    """A tensor with new axes of 1."""
    if not axes:
        return value
    shape = None if value.shape is None else list(value.shape)
    for axis in axes if shape is not None else ():
        assert shape is not None
        shape.insert(axis, 1)
    return g.op("Unsqueeze", value, g.const(np.array(axes, np.int64)), dtype=value.dtype, shape=shape)


def _wider(left: Any, right: Any) -> Any:
    return right if left == 1 else left


def _moved(g: Builder, value: ir.Value, perm: tuple[int, ...]) -> ir.Value:
    if perm == tuple(range(len(perm))):
        return value
    shape = None if value.shape is None else [list(value.shape)[i] for i in perm]
    return g.op("Transpose", value, perm=list(perm), dtype=value.dtype, shape=shape)


def _text(equation: str, inputs: str, result: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g ({inputs}) => (float[{result}] y) {{
  y = Einsum <equation = "{equation}"> (a, b)
}}"""


EinsumProduct.examples = (
    Example(
        text=_text("bqhd,bkhd->bhqk", "float[B,S,4,16] a, float[B,T,4,16] b", "B,4,S,T"),
        fires=1,
        emits={"MatMul": 1},
    ),
    Example(
        text=_text("bkhd,bhqk->bqhd", "float[B,T,4,16] a, float[B,4,S,T] b", "B,S,4,16"),
        fires=1,
        emits={"MatMul": 1},
    ),
    Example(
        text=_text("bhid,bjd->bhij", "float[B,4,S,16] a, float[B,T,16] b", "B,4,S,T"),
        fires=1,
        emits={"MatMul": 1, "Unsqueeze": 1},
    ),
    Example(
        text=_text("bqgrd,bkgd->bgrqk", "float[B,S,2,3,16] a, float[B,T,2,16] b", "B,2,3,S,T"),
        fires=1,
        emits={"MatMul": 1, "Unsqueeze": 1},
    ),
    Example(
        text=_text("bqhd,bkhd->hbqk", "float[B,S,4,16] a, float[B,T,4,16] b", "4,B,S,T"),
        fires=1,
        emits={"MatMul": 1, "Transpose": 3},
    ),
    Example(
        text=_text("...qhd,...khd->...hqk", "float[B,W,S,4,16] a, float[B,W,T,4,16] b", "B,W,4,S,T"),
        fires=1,
        emits={"MatMul": 1, "Transpose": 2},
    ),
    Example(
        text=_text("bhqd,bhkd", "float[B,4,S,16] a, float[B,4,T,16] b", "B,4,S,T"),
        because="einsum-shape",
    ),
    Example(
        text=_text("bsd,dnh->bsnh", "float[B,S,64] a, float[64,4,16] b", "B,S,4,16"),
        because="einsum-shape",
    ),
    Example(text=_text("ii,ij->ij", "float[4,4] a, float[4,4] b", "4,4"), because="einsum-shape"),
)
