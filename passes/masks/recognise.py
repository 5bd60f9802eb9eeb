"""From the expression of a mask to typed facts. What is not proven to be one stays a residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from .additive import addends
from .bounds import bounded
from .evaluate import ancestors, evaluate
from .facts import Always, Causal, Conjunct, KeyLengths, KeyPadding, MaskFacts, Window
from .frame import BATCH, KEY, QUERY, ROLES, Frame, place
from .logic import Bool, Flag, NonNegative, Not, Zero, conjuncts, not_, substitute
from .measure import axes_of
from .poly import ONE, ZERO, Axis, Dim, Elem, Poly, parse_size
from .tensor import Memo

__all__ = ["analyse"]

Size = int | ir.SymbolicDim | str | None


def analyse(
    value: ir.Value, *, query_dim: Size, key_dim: Size, forbids: bool = False, memo: Memo | None = None
) -> MaskFacts | None:
    """Prove what can be proven of an attention mask. Never raises, never changes the graph.

    Args:
        value: Boolean keep mask or float additive mask, broadcastable to (B, N, S, T).
        query_dim: S, a number or a symbol. An unknown S proves nothing about the query axis.
        key_dim: T, likewise.
        forbids: For a boolean mask: True in it forbids, as in ``masked_fill``. The facts still say what is kept.
        memo: Findings to share among the sites of one unchanged graph.

    Returns:
        The facts, or None when not even the rank and the dtype of the mask are known.
    """
    memo = Memo() if memo is None else memo
    sizes = (parse_size(query_dim), parse_size(key_dim))
    tensor = evaluate(value, memo)
    frame = None if tensor is None else place(tensor, memo, *sizes)
    if tensor is None or frame is None or tensor.kind == "int":
        return None
    names = frozenset(ROLES[a] for a in axes_of(frame.expr))
    if tensor.kind == "bool":
        site = _Site(value, memo, frame, frozenset())
        keep: Bool = not_(frame.expr) if forbids else frame.expr  # type: ignore[arg-type,assignment]
        found, residual = site.facts(keep)
        return MaskFacts("boolean", None, found, residual, (), names)
    return _additive(value, memo, frame, sizes, names)


def _additive(
    value: ir.Value, memo: Memo, frame: Frame, sizes: tuple[Poly | None, Poly | None], names: frozenset[str]
) -> MaskFacts:
    split = addends(value, memo, *sizes)
    found: list[Conjunct] = []
    residual = False
    for part in split.masks:
        typed, unknown = _Site(value, memo, part.frame, part.binary).facts(part.keep)
        found += [c for c in typed if c not in found and not isinstance(c, Always)]
        residual |= unknown
    if not found and not residual:
        found = [Always()]
    assumed = any(m.binary for m in split.masks)
    return MaskFacts("additive", split.fill, tuple(found), residual, tuple(split.biases), names, assumed)


@dataclass
class _Bounds:
    """Bounds of ``j - i``: uppers ``j <= i + p`` and lowers ``j >= i - p``."""

    uppers: list[Poly] = field(default_factory=list)
    lowers: list[Poly] = field(default_factory=list)


@dataclass(frozen=True)
class _Site:
    """One boolean expression over (b, n, i, j) to be typed."""

    value: ir.Value
    memo: Memo
    frame: Frame
    binary: frozenset[Elem]

    def facts(self, keep: Bool) -> tuple[tuple[Conjunct, ...], bool]:
        """The typed conjuncts, and whether anything else remains."""
        keep = bounded(keep, self.frame.shape)
        if keep is True:
            return (Always(),), False
        found: list[Conjunct] = []
        bounds, residual = _Bounds(), False
        for item in conjuncts(keep):
            if axes_of(item) & self.frame.loose:
                residual = True
            elif not _diagonal(item, bounds):
                typed = self.key_fact(item)
                residual |= typed is None
                found += [] if typed is None else [typed]
        diagonal, unknown = self._diagonals(bounds)
        return (*diagonal, *found), residual or unknown

    def _diagonals(self, bounds: _Bounds) -> tuple[list[Conjunct], bool]:
        """Causal and window facts from bounds of ``j - i``."""
        found: list[Conjunct] = []
        numbers = [p.constant for p in bounds.uppers if isinstance(p.constant, int)]
        right = min(numbers) + 1 if numbers and min(numbers) > 0 else None
        if numbers and right is None:
            found.append(self._causal(Poly.number(min(numbers))))
        symbolic = [p for p in bounds.uppers if p.constant is None]
        found += [self._causal(p) for p in symbolic]
        left, residual = None, False
        for lower in bounds.lowers:
            moved = [(p, (lower + p).constant) for p in (ZERO, *symbolic)]
            known = next(((p, c) for p, c in moved if isinstance(c, int)), None)
            if known is None:
                residual = True
            elif known[0] == ZERO:
                left = known[1] + 1 if left is None else min(left, known[1] + 1)
            else:
                found.append(Window(known[1] + 1, None, str(known[0])))
        if left is not None or right is not None:
            found.append(Window(left, right))
        return found, residual

    def _causal(self, offset: Poly) -> Causal:
        query, key = self.frame.query, self.frame.key
        aligned = query is not None and key is not None and self.memo.same(offset + query, key)
        number = offset.constant
        return Causal(number if isinstance(number, int) else str(offset), aligned)

    def key_fact(self, item: Bool) -> Conjunct | None:
        """A conjunct that speaks of batch and key alone, typed."""
        if not axes_of(item) <= {BATCH, KEY}:
            return None
        return self._flags(item) or self._lengths(item) or self._look_up(item)

    def _flags(self, item: Bool) -> KeyPadding | None:
        inner = item.item if isinstance(item, Not) else item
        negated = isinstance(item, Not)
        if isinstance(inner, Flag):
            elem, how = inner.elem, "zero" if negated else "nonzero"
        elif isinstance(inner, Zero) and inner.poly.single is not None and inner.poly.single[2] == 0:
            atom, how = inner.poly.single[0], "nonzero" if negated else "zero"
            if not isinstance(atom, Elem):
                return None
            elem = atom
        else:
            return None
        axes = self._axes_of(elem)
        if axes is None or axes[1] is None:
            return None
        return KeyPadding(elem.value, how, *axes, assumes_binary=elem in self.binary)  # type: ignore[arg-type]

    def _lengths(self, item: Bool) -> KeyLengths | None:
        """``length + c - j >= 0``."""
        if not isinstance(item, NonNegative):
            return None
        single = (item.poly + Poly.atom(Axis(KEY))).single
        if single is None or single[1] != 1 or not isinstance(single[0], Elem) or not isinstance(single[2], int):
            return None
        axes = self._axes_of(single[0])
        return None if axes is None or axes[1] is not None else KeyLengths(single[0].value, single[2] + 1, axes[0])

    def _axes_of(self, elem: Elem) -> tuple[int | None, int | None] | None:
        """(batch axis, key axis) of the value an element is read from, when it is read whole and in order."""
        shape = self.memo.declared(elem.value)
        tensor = evaluate(elem.value, self.memo)
        shape = tensor.shape if tensor is not None else shape
        if shape is None or len(shape) != len(elem.indices):
            return None
        found: dict[int, int] = {}
        for axis, (index, size) in enumerate(zip(elem.indices, shape, strict=True)):
            single = index.single
            if index == ZERO and size == ONE:
                continue
            if single is None or single[1:] != (1, 0) or not isinstance(single[0], Axis) or single[0].index in found:
                return None
            if not self.memo.same(size, self.frame.size(single[0].index)):
                return None
            found[single[0].index] = axis
        return (found.get(BATCH), found.get(KEY)) if set(found) <= {BATCH, KEY} else None

    def _look_up(self, item: Bool) -> KeyPadding | None:
        """A boolean value above the mask that is just this conjunct, or its negation."""
        opposite = not_(item)
        for value in ancestors(self.value, self.memo):
            tensor = evaluate(value, self.memo)
            if tensor is None or tensor.kind != "bool" or not 1 <= tensor.rank <= 4:
                continue
            for roles in _alignments(tensor.rank):
                if not self._fits(tensor.shape, roles):
                    continue
                mapping = {k: Poly.atom(Axis(r)) for k, r in enumerate(roles)}
                expr = substitute(tensor.expr, mapping)
                if expr in (item, opposite) and not isinstance(expr, bool):
                    batch = next((k for k, r in enumerate(roles) if r == BATCH), None)
                    how = "nonzero" if expr == item else "zero"
                    return KeyPadding(value, how, batch, roles.index(KEY), assumes_binary=bool(self.binary))
        return None

    def _fits(self, shape: Sequence[Poly], roles: Sequence[int]) -> bool:
        for size, role in zip(shape, roles, strict=True):
            whole = self.memo.same(size, self.frame.size(role))
            if not (whole if role == KEY else size == ONE or (role == BATCH and whole)):
                return False
        return True


def _alignments(rank: int) -> list[tuple[int, ...]]:
    """The roles the axes of a value may have: as it broadcasts, and (batch, key)."""
    right = tuple(range(4 - rank, 4))
    return [(BATCH, KEY), right] if rank == 2 else [right]


def _diagonal(item: Bool, bounds: _Bounds) -> bool:
    """Take bounds of ``j - i`` by sizes and numbers."""
    if not isinstance(item, NonNegative | Zero):
        return False
    terms = dict(item.poly.terms)
    query, key = (terms.pop((Axis(a),), 0) for a in (QUERY, KEY))
    rest = Poly.of(terms)
    if (query, key) not in ((1, -1), (-1, 1)) or not all(isinstance(a, Dim) for a in rest.atoms()):
        return False
    upper = rest if query == 1 else -rest
    if query == 1 or isinstance(item, Zero):
        bounds.uppers.append(upper)
    if query != 1 or isinstance(item, Zero):
        bounds.lowers.append(-upper)
    return True
