"""Floating-point operations and bytes of one node, from the shapes it ran with.

A product of an (M, K) and a (K, N) matrix counts 2 M N K operations, attention its two products, a mixture of experts
those of each token's experts, everything else none, as is usual: it is bound by memory. Where a kernel keeps a weight
in a form of its own, the profile does not show its shape; what is needed of it is then taken from the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

__all__ = ["flops_of", "packed_elements"]

Shape = Sequence[int]
#: What computes operations from the shapes of inputs (those that are not packed away) and outputs.
_Count = Callable[[Sequence[Shape], Sequence[Shape]], int | None]


def flops_of(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Operations of a node; None where the shapes do not tell.

    Args:
        op: Operator name without its domain.
        inputs: Shapes of the inputs that were there when it ran.
        outputs: Shapes of its outputs.
    """
    count = _COUNTS.get(_family(op))
    if count is None or not inputs or not outputs:
        return 0 if count is None else None
    try:
        return count(inputs, outputs)
    except (IndexError, ZeroDivisionError):
        return None


def _family(op: str) -> str:
    """The name under which an operator is counted: the own one has a name for each set of inputs."""
    return next((name for name in _FAMILIES if op.startswith(name)), op)


#: Own operators, the longer name first.
_FAMILIES: Final = ("FlashAttention_packed", "FlashAttention", "MixtureOfExperts")


def packed_elements(op: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Elements of a weight that a kernel keeps packed, and that its inputs therefore do not show."""
    if op not in ("MatMul", "FusedMatMul", "Gemm", "FusedGemm") or len(inputs) > 1 or not inputs or not outputs:
        return 0
    return _inner(inputs[0], outputs[0]) * (outputs[0][-1] if outputs[0] else 1)


def _inner(left: Shape, out: Shape) -> int:
    """The dimension a product sums over: the one of its left side that is not a row of the result."""
    if len(left) < 2 or len(out) < 2:
        return left[-1] if left else 1
    return left[-1] if left[-2] == out[-2] else left[-2]


def _product(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    return 2 * math.prod(outputs[0]) * _inner(inputs[0], outputs[0])


def _convolution(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    if len(inputs) < 2 or len(inputs[1]) < 3:
        return None
    return 2 * math.prod(outputs[0]) * math.prod(inputs[1][1:])


def _attention(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Query, key and value apart, (B, S, D) or (B, N, S, H): scores and weighted sum."""
    query, key = inputs[0], inputs[1]
    if len(query) < 3 or len(key) != len(query):
        return None
    keys = max(key[-2], *(past[-2] for past in inputs[3:] if len(past) == 4 and past[-1] == query[-1]), 0)
    return 2 * keys * (math.prod(query) + math.prod(outputs[0]))


def _one_tensor(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int:
    """Query, key and value as parts of one (B, S, D) tensor."""
    batch, length, _ = inputs[0]
    return 4 * batch * length * length * outputs[0][-1]


def _packed_attention(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """com.microsoft::Attention, which also makes query, key and value: (B, S, D) by (D, 3 D')."""
    batch, length, width = inputs[0]
    out = outputs[0][-1]
    return 2 * batch * length * width * 3 * out + 4 * batch * length * length * out


def _experts(inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Tokens (..., H), experts and weights (..., K), and the two matrices of each expert, (E, F, H) and (E, H, I)."""
    chosen, inner, outer = inputs[1], inputs[3], inputs[4]
    if len(inner) != 3 or len(outer) != 3:
        return None
    return 2 * math.prod(chosen) * (math.prod(inner[1:]) + math.prod(outer[1:]))


_COUNTS: Final[Mapping[str, _Count]] = {
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulNBits"), _product),
    **dict.fromkeys(("Conv", "FusedConv"), _convolution),
    **dict.fromkeys(("MultiHeadAttention", "GroupQueryAttention", "FlashAttention"), _attention),
    "FlashAttention_packed": _one_tensor,
    "Attention": _packed_attention,
    "MixtureOfExperts": _experts,
}
