"""Typed facts about an attention mask, and questions to ask of them.

Places are (b, n, i, j): batch, head, query index, key index. A mask keeps a place when the query may see the key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

__all__ = [
    "Always",
    "Causal",
    "Conjunct",
    "KeyLengths",
    "KeyPadding",
    "MaskFacts",
    "Window",
    "describe",
    "entails_causal",
    "is_only_causal",
    "key_padding_only",
    "window_of",
]


@dataclass(frozen=True)
class Causal:
    """Keeps ``j <= i + offset``.

    Attributes:
        offset: A number, or the text of an expression over sizes.
        lower_right: Whether offset is proven to be T - S (with S = T that is 0 as well).
    """

    offset: int | str = 0
    lower_right: bool = False

    @property
    def upper_left(self) -> bool:
        """Whether the rule is ``j <= i``."""
        return self.offset == 0


@dataclass(frozen=True)
class Window:
    """Keeps ``i + offset - left < j < i + offset + right``; a bound that is None does not exist.

    Attributes:
        left: Keys visible on the left, the query's own place included.
        right: Keys visible on the right, the query's own place included.
        offset: 0, or the text of the expression by which the diagonal is moved (a causal mask's offset).
    """

    left: int | None = None
    right: int | None = None
    offset: int | str = 0


@dataclass(frozen=True)
class KeyPadding:
    """Keeps the keys that a tensor of flags names.

    Attributes:
        value: The flags, bool, int or float. All axes but the two named here have size 1.
        how: "nonzero" keeps where the flag is not 0 (True); "zero" keeps where it is 0 (False).
        batch_axis: The axis of ``value`` that is the batch; None when it has none.
        key_axis: The axis of ``value`` that is the key index; its size is proven to be T.
        assumes_binary: True when the flags are numbers used as factors (``(1 - m) * -10000``): the fact is exact
            only for flags that are 0 or 1, which no graph can prove of an input.
    """

    value: ir.Value
    how: Literal["nonzero", "zero"] = "nonzero"
    batch_axis: int | None = 0
    key_axis: int = 1
    assumes_binary: bool = False


@dataclass(frozen=True)
class KeyLengths:
    """Keeps ``j < value[b] + offset``.

    Attributes:
        value: Integer lengths; all axes but ``batch_axis`` have size 1.
        offset: A number added to every length.
        batch_axis: The axis of ``value`` that is the batch; None for one length for all.
    """

    value: ir.Value
    offset: int = 0
    batch_axis: int | None = 0


@dataclass(frozen=True)
class Always:
    """Keeps every place."""


Conjunct = Causal | Window | KeyPadding | KeyLengths | Always


@dataclass(frozen=True)
class MaskFacts:
    """What is proven of a mask.

    Attributes:
        kind: "boolean" (True keeps) or "additive" (a float added to the scores).
        fill: The one value an additive mask has at every forbidden place; None when there are several or none.
        conjuncts: The mask keeps a place exactly when all of these do, and the residual, if any, does too.
        residual: Whether a part remains that is none of the typed conjuncts.
        additive: Addends of an additive mask that are biases, each broadcastable like the mask itself. The mask
            equals 0 or a forbidding value per ``conjuncts``, plus these.
        axes: Which of "batch", "head", "query", "key" the value depends on.
        assumes_binary: Whether all this holds only for flags that are 0 or 1, see :class:`KeyPadding`.
    """

    kind: Literal["boolean", "additive"]
    fill: float | None
    conjuncts: tuple[Conjunct, ...]
    residual: bool
    additive: tuple[ir.Value, ...]
    axes: frozenset[str]
    assumes_binary: bool = False

    @property
    def exact(self) -> bool:
        """Whether the conjuncts say everything about which places are kept, with nothing assumed."""
        return not self.residual and not self.assumes_binary


def entails_causal(facts: MaskFacts) -> bool:
    """Whether every kept place has ``j <= i``, and nothing forbids ``j == i`` to all rows.

    A mask of the past alone (``j < i``) leaves the first row no key: with a finite fill that row is the mean of all
    values, also of those that a causal kernel never reads.
    """
    offsets = [c.offset for c in facts.conjuncts if isinstance(c, Causal) and isinstance(c.offset, int)]
    return 0 in offsets and min(offsets) == 0


def is_only_causal(facts: MaskFacts) -> bool:
    """Whether the mask is a causal one and nothing else: no residual, no bias, no other conjunct."""
    return not facts.residual and not facts.additive and [type(c) for c in facts.conjuncts] == [Causal]


def key_padding_only(facts: MaskFacts) -> bool:
    """Whether the mask only says which keys exist (flags or lengths)."""
    typed = all(isinstance(c, KeyPadding | KeyLengths) for c in facts.conjuncts)
    return bool(facts.conjuncts) and typed and not facts.residual and not facts.additive


def window_of(facts: MaskFacts) -> Window | None:
    """The sliding window of a mask, or None."""
    return next((c for c in facts.conjuncts if isinstance(c, Window)), None)


_NAMES = {
    Causal: "causal",
    Window: "window",
    KeyPadding: "key_padding",
    KeyLengths: "key_lengths",
    Always: "all",
}


def describe(facts: MaskFacts) -> dict[str, str | int | float | bool | None]:
    """Facts as plain data for a report: ``{"mask": "causal+key_padding", "window": 128}``."""
    names = [_NAMES[type(c)] for c in facts.conjuncts]
    if facts.additive:
        names = [*(n for n in names if n != "all"), "bias"]
    if facts.residual:
        names.append("other")
    data: dict[str, str | int | float | bool | None] = {"mask": "+".join(names), "given_as": facts.kind}
    for item in facts.conjuncts:
        if isinstance(item, Causal):
            data["causal_offset"] = item.offset
        if isinstance(item, Window):
            data |= {"window": item.left, "window_right": item.right}
    if facts.fill is not None:
        data["fill"] = facts.fill if facts.fill != float("-inf") else "-inf"
    if facts.axes:
        data["axes"] = ",".join(a for a in ("batch", "head", "query", "key") if a in facts.axes)
    return data
