"""The logit that each head, or all of them, has beside its scores: behind the column that is put next to them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ..graph import dims, producer

__all__ = ["Size", "per_head_vector"]

#: A dimension: a number, a symbol, or unknown.
Size = int | str | None

#: The place of an axis that a tensor does not have.
_NOWHERE = -1


def per_head_vector(value: ir.Value) -> ir.Value | None:
    """The tensor of N elements (or of one) behind a (B, N, S, 1) value that was reshaped and expanded."""
    shape = dims(value)
    if shape is None or len(shape) not in (3, 4) or shape[-1] != 1:
        return None
    place: int | None = 1  # of the heads; None where unknown shapes hide it
    for _ in range(6):
        found = dims(value)
        wide = None if found is None else [d for d in found if d != 1]
        by_head = len(shape) == 4 and wide == [shape[1]]
        if found is not None and (not wide or (by_head and _is_of_heads(found, place))):
            return value
        node = producer(value, "Expand", "Unsqueeze", "Identity", "Cast", "Reshape")
        if node is None:
            return None
        above = node.inputs[0]
        assert above is not None
        before = dims(above)
        if node.op_type == "Reshape" and not _same_but_ones(found, before):
            return None
        value, place = above, _place_before(found, before, place)
    return None


def _is_of_heads(found: Sequence[Size], place: int | None) -> bool:
    """Whether the one long axis of a tensor is that of the heads; a vector is, where shapes do not tell."""
    if place is None:
        return len(found) == 1 or found[-2:] == (1, 1)
    return place != _NOWHERE and found[place] != 1


def _same_but_ones(first: Sequence[Size] | None, second: Sequence[Size] | None) -> bool:
    """Whether two known shapes differ in axes of length one alone."""
    if first is None or second is None or None in first or None in second:
        return False
    return [d for d in first if d != 1] == [d for d in second if d != 1]


def _place_before(after: Sequence[Size] | None, before: Sequence[Size] | None, place: int | None) -> int | None:
    """Where an axis stood before a tensor was expanded, or got and lost axes of length one."""
    if place == _NOWHERE or place is None or after is None or before is None or None in after or None in before:
        return _NOWHERE if place == _NOWHERE else None
    if _same_but_ones(after, before):
        ahead = sum(d != 1 for d in after[:place])
        return [at for at, d in enumerate(before) if d != 1][ahead] if after[place] != 1 else _NOWHERE
    return max(place - (len(after) - len(before)), _NOWHERE)  # expanded: axes count from the last
