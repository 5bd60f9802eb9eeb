"""Take an additive mask apart: addends that only forbid, and addends that are biases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import onnx_ir as ir

from ..graph import producer
from .evaluate import evaluate
from .frame import Frame, place
from .logic import Bool, Choice, Expr, Number, Real, choose, not_, zero
from .poly import Elem, Poly
from .tensor import Memo

__all__ = ["FORBIDS", "Addends", "Mask", "addends"]

#: An addend at most this large forbids a place: exp(-10000) is 0 in every float dtype.
FORBIDS: Final = -1e4
#: Most addends that are followed, so that a residual stream given as a mask costs nothing.
_MOST: Final = 8


@dataclass(frozen=True)
class Mask:
    """An addend that is 0 where it keeps and forbids elsewhere.

    Attributes:
        keep: Where it keeps.
        fills: The values it has where it forbids; a factor on 0/1 flags counts with the value at flag 0.
        binary: Flags that had to be taken for 0 or 1.
        frame: Where the expression sits.
    """

    keep: Bool
    fills: frozenset[float]
    binary: frozenset[Elem]
    frame: Frame


@dataclass
class Addends:
    """The parts of an additive mask."""

    masks: list[Mask] = field(default_factory=list)
    biases: list[ir.Value] = field(default_factory=list)

    @property
    def fill(self) -> float | None:
        """The one value at every forbidden place, or None."""
        fills = {f for m in self.masks for f in m.fills}
        lone = len([m for m in self.masks if m.fills]) == 1 and not self.biases
        return fills.pop() if len(fills) == 1 and (lone or fills == {float("-inf")}) else None


def addends(value: ir.Value, memo: Memo, query: Poly | None, key: Poly | None) -> Addends:
    """The masks and the biases that sum to a value."""
    result, pending = Addends(), [value]
    while pending:
        current = pending.pop()
        mask = _mask(current, memo, query, key)
        if mask is not None:
            result.masks.append(mask)
            continue
        node = producer(current, "Add", "Identity", "Where")
        parts = [] if node is None or len(result.biases) + len(pending) >= _MOST else _parts(node, memo, query, key)
        masks = [p for p in parts if isinstance(p, Mask)]
        values = [p for p in parts if isinstance(p, ir.Value)]
        if not parts or any(_rank_above_four(v, memo) for v in values):
            result.biases.append(current)
        result.masks += masks
        pending += reversed(values)
    return result


def _rank_above_four(value: ir.Value, memo: Memo) -> bool:
    tensor = evaluate(value, memo)
    return tensor is None or tensor.rank > 4


def _parts(node: ir.Node, memo: Memo, query: Poly | None, key: Poly | None) -> list[Mask | ir.Value]:
    """The addends of a node; [] when it is none that adds."""
    if any(v is None for v in node.inputs):
        return []
    inputs = [v for v in node.inputs if v is not None]
    return inputs if node.op_type != "Where" else _where(inputs, memo, query, key)  # type: ignore[return-value]


def _where(inputs: list[ir.Value], memo: Memo, query: Poly | None, key: Poly | None) -> list[Mask | ir.Value]:
    """``Where(keep, bias, fill)``: a mask on a bias."""
    if len(inputs) != 3:
        return []
    tensor = evaluate(inputs[0], memo)
    frame = None if tensor is None else place(tensor, memo, query, key)
    if frame is None:
        return []
    for arm, other, keeps in ((2, 1, True), (1, 2, False)):
        fill = _fill(inputs[arm], memo)
        if fill is not None:
            keep: Bool = frame.expr if keeps else not_(frame.expr)  # type: ignore[arg-type,assignment]
            return [Mask(keep, frozenset({fill}), frozenset(), frame), inputs[other]]
    return []


def _fill(value: ir.Value, memo: Memo) -> float | None:
    tensor = evaluate(value, memo)
    if tensor is None or tensor.kind != "float":
        return None
    fixed = _fixed(tensor.expr)
    return fixed if fixed is not None and fixed <= FORBIDS else None


def _fixed(expr: Expr) -> float | None:
    if isinstance(expr, Real):
        return expr.value
    constant = expr.constant if isinstance(expr, Poly) else None
    return None if constant is None else float(constant)


def _mask(value: ir.Value, memo: Memo, query: Poly | None, key: Poly | None) -> Mask | None:
    tensor = evaluate(value, memo)
    frame = None if tensor is None or tensor.kind != "float" else place(tensor, memo, query, key)
    if frame is None:
        return None
    fills: set[float] = set()
    binary: set[Elem] = set()
    keep = _keep(frame.expr, fills, binary)  # type: ignore[arg-type]
    return None if keep is None else Mask(keep, frozenset(fills), frozenset(binary), frame)


def _keep(number: Number, fills: set[float], binary: set[Elem]) -> Bool | None:
    """Where a number is 0, when it forbids everywhere else."""
    if isinstance(number, Choice):
        then, otherwise = _keep(number.then, fills, binary), _keep(number.otherwise, fills, binary)
        return None if then is None or otherwise is None else choose(number.condition, then, otherwise)
    fixed = _fixed(number)
    if fixed is not None:
        if fixed <= FORBIDS:
            fills.add(fixed)
        return True if fixed == 0 else False if fixed <= FORBIDS else None
    single = number.single if isinstance(number, Poly) else None
    return None if single is None else _factor(*single, fills, binary)


def _factor(atom: object, slope: float, start: float, fills: set[float], binary: set[Elem]) -> Bool | None:
    """``slope * m + start`` for a flag m of 0 or 1: ``(1 - m) * fill`` or ``m * fill``."""
    if not isinstance(atom, Elem):
        return None
    keeps_nonzero = start == -slope and start <= FORBIDS
    keeps_zero = start == 0 and slope <= FORBIDS
    if not keeps_nonzero and not keeps_zero:
        return None
    binary.add(atom)
    fills.add(float(min(slope, start)))
    is_zero = zero(Poly.atom(atom))
    return not_(is_zero) if keeps_nonzero else is_zero
