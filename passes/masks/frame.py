"""Seat a mask in the frame of the scores, (batch, head, query, key), and say which of its axes are proven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .logic import Expr, substitute
from .poly import ONE, ZERO, Axis, Poly
from .tensor import Memo, Tensor

__all__ = ["BATCH", "HEAD", "KEY", "QUERY", "ROLES", "Frame", "place"]

BATCH: Final = 0
HEAD: Final = 1
QUERY: Final = 2
KEY: Final = 3
ROLES: Final = ("batch", "head", "query", "key")


@dataclass(frozen=True)
class Frame:
    """A mask as an expression over ``Axis(0..3)`` = (b, n, i, j).

    Attributes:
        expr: The element.
        shape: The mask's own size per role, 1 where it has no such axis.
        query: S, or None.
        key: T, or None.
        loose: Roles whose axis might have size 1 or the full size: no fact may rest on them.
    """

    expr: Expr
    shape: tuple[Poly, ...]
    query: Poly | None
    key: Poly | None
    loose: frozenset[int]

    def size(self, role: int) -> Poly | None:
        """The size a role has in the scores (query, key) or in the mask (batch, head)."""
        return (self.shape[BATCH], self.shape[HEAD], self.query, self.key)[role]


def place(tensor: Tensor, memo: Memo, query: Poly | None, key: Poly | None) -> Frame | None:
    """Align a tensor of rank 0 to 4 with the right of (B, N, S, T); None for a higher rank."""
    if tensor.rank > 4:
        return None
    lead = 4 - tensor.rank
    shape = (*[ONE] * lead, *tensor.shape)
    mapping = {k: ZERO if s == ONE else Poly.atom(Axis(k + lead)) for k, s in enumerate(tensor.shape)}
    full = {QUERY: query, KEY: key}
    loose = {r for r, size in full.items() if shape[r] != ONE and not memo.fits(shape[r], size)}
    return Frame(substitute(tensor.expr, mapping), shape, query, key, frozenset(loose))
