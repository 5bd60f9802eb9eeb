"""Walking up from a softmax to the score product: scale, cap, masks and biases by meaning."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ..graph import attribute, constant, dims, op_name, producer, scalar
from ..rule import Declined
from .sink_vector import Size, per_head_vector

__all__ = ["ABSORBS", "Factor", "Product", "Term", "View", "filling", "score_product", "swaps_last"]

#: A fill at or below this, added to any score below 32, leaves nothing of the score: adding and replacing are one.
ABSORBS = -1e9
#: The same in float16, whose lowest number is -65504.
ABSORBS_HALF = -3e4
#: A fill at or below this, put in the place of a score, forbids its key unless scores are as low themselves.
FORBIDS = -9e3
#: What such a fill is lowered to.
LOWEST, LOWEST_HALF = -1e30, -65504.0

#: Operators that hand their first input through (Dropout does, in inference).
_TRANSPARENT = frozenset({"Identity", "Dropout"})
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, slots=True)
class View:
    """A Reshape on the score path that leaves the keys' axis alone: ``inner`` was viewed as ``outer``."""

    outer: ir.Value
    inner: ir.Value


@dataclass(frozen=True, slots=True)
class Factor:
    """A tensor, one number a head or row, that scores are multiplied ("Mul") or divided ("Div") by."""

    value: ir.Value
    op: str


@dataclass(slots=True)
class Term:
    """Something added to the scores, or a keep mask on them.

    Attributes:
        value: The tensor.
        kind: "bias" (added), "keep" (boolean, True keeps), "drop" (boolean, True forbids).
        factor: What a bias is multiplied by (a scale that stands after the addition).
        factors: Tensors it is multiplied by, likewise.
        fill: Finite number that takes the place of a forbidden score; None for minus infinity.
        views: Views between the place of the term and the score product, outermost first.
    """

    value: ir.Value
    kind: str
    factor: float = 1.0
    factors: list[Factor] = field(default_factory=list)
    fill: float | None = None
    views: list[View] = field(default_factory=list)


@dataclass(slots=True)
class Product:
    """The score product and everything between it and the softmax.

    Attributes:
        node: The MatMul.
        scale: Product of the constant scalars on the way.
        factors: Tensors (learned scales) that multiply the scores, to be moved onto the query.
        softcap: Cap of a tanh on the scores, 0.0 for none.
        terms: Biases and masks, outermost first.
        views: Views between the softmax and the product, outermost first.
        widened: Whether the scores were cast to a wider float before the softmax.
        sink: One more logit for each head, or for all, beside the scores; None when there is none.
        sink_first: Whether it stands before the scores.
        assumptions: Names of what the walk took for granted.
    """

    node: ir.Node
    scale: float = 1.0
    factors: list[Factor] = field(default_factory=list)
    softcap: float = 0.0
    terms: list[Term] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    widened: bool = False
    sink: ir.Value | float | None = None
    sink_first: bool = False
    assumptions: tuple[str, ...] = ()


def swaps_last(node: ir.Node) -> bool:
    """Whether a Transpose swaps the last two axes and nothing else."""
    perm = list(attribute(node, "perm", ()))
    rank = len(perm)
    return rank >= 2 and perm == [*range(rank - 2), rank - 1, rank - 2]


class _Walk:
    def __init__(self) -> None:
        self.scale = 1.0
        self.factors: list[Factor] = []
        self.softcap = 0.0
        self.terms: list[Term] = []
        self.views: list[View] = []
        self.widened = False
        self.sink: ir.Value | float | None = None
        self.sink_first = False
        self.assumptions: set[str] = set()

    def up(self, value: ir.Value) -> Product:
        top = dims(value)
        while True:
            node = value.producer()
            if node is None:
                raise Declined("no-score-product", f"'{value.name}' is reached before any matrix product", at=value)
            if op_name(node) == "MatMul":
                found = dims(value)
                if not all(map(_keeps_last, self.views)) and (top is None or found is None or top[-2:] != found[-2:]):
                    raise Declined("score-layout", f"the scores are reshaped from {found} to {top}", at=node)
                return Product(
                    node=node,
                    scale=self.scale,
                    factors=self.factors,
                    softcap=self.softcap,
                    terms=self.terms,
                    views=self.views,
                    widened=self.widened,
                    sink=self.sink,
                    sink_first=self.sink_first,
                    assumptions=tuple(sorted(self.assumptions)),
                )
            step = _STEPS.get(op_name(node))
            if step is None:
                raise Declined(
                    "no-score-product", f"no operator has {op_name(node)} between its scores and the softmax", at=node
                )
            value = step(self, node)

    def _through(self, node: ir.Node) -> ir.Value:
        return _first(node)

    def _cast(self, node: ir.Node) -> ir.Value:
        source = _first(node)
        if source.dtype not in _FLOATS or ir.DataType(attribute(node, "to")) not in _FLOATS:
            raise Declined("no-score-product", "the scores are cast from a type that is not floating point", at=node)
        self.widened = self.widened or source.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        return source

    def _reshape(self, node: ir.Node) -> ir.Value:
        source, result = _first(node), node.outputs[0]
        inner, outer = dims(source), dims(result)
        if inner is None or outer is None or (min(len(inner), len(outer)) < 3 and not _joins_rows(inner, outer)):
            raise Declined("score-layout", f"the scores are reshaped from {inner} to {outer}", at=node)
        view = View(result, source)
        self.views.append(view)
        for term in self.terms:
            term.views.append(view)
        return source

    def _max(self, node: ir.Node) -> ir.Value:
        """A floor that no score reaches: it keeps minus infinity and sums of masks finite, in rows without keys too."""
        for value, other in _floored(node):
            floor = _low(other)
            lowest = LOWEST_HALF if value.dtype == ir.DataType.FLOAT16 else LOWEST
            if floor is not None and floor <= lowest:
                self.assumptions.add("fully-masked-rows")
                return value
        raise Declined("no-score-product", "the scores are kept above or below a number, as no operator does", at=node)

    def _add(self, node: ir.Node) -> ir.Value:
        path, other = self._sides(node)
        if filling(other) == 0 and dims(path) is not None and dims(path) == dims(node.outputs[0]):
            return path  # baddbmm whose first operand counts for nothing
        self._refuse_below_cap(node)
        self.terms.append(Term(other, "bias", self.scale, list(self.factors)))
        return path

    def _sub(self, node: ir.Node) -> ir.Value:
        left, right = _pair(node)
        if _is_one_column(right, left) and not self.softcap and self.sink is None:
            if producer(right, "ReduceMax") is None:  # what forbids a row whole leaves the softmax without a number
                self.assumptions.add("fully-masked-rows")
            return left  # one number a row changes no softmax: a maximum, say
        self._refuse_below_cap(node)
        if not _holds_scores(left, beside=right) and leads_to_product(right):
            self.terms.append(Term(left, "bias", self.scale, list(self.factors)))
            return self._minus(right)
        if not _holds_scores(left, beside=right):
            raise Declined("no-score-product", "the scores are subtracted from something", at=node)
        self.terms.append(Term(right, "bias", -self.scale, list(self.factors)))
        return left

    def _mul(self, node: ir.Node) -> ir.Value:
        left, right = _pair(node)
        for value, other in ((left, right), (right, left)):
            number = scalar(other)
            if number is not None:
                self.scale *= float(number)
                return value
        path, other = self._sides(node)
        if not _per_head(other):
            raise Declined("score-factor", f"the scores are multiplied by '{other.name}' {dims(other)}", at=node)
        self.factors.append(Factor(other, "Mul"))
        return path

    def _tanh(self, node: ir.Node) -> ir.Value:
        """The cap of c * tanh(x / d), where c is all that stands above: a cap of c on scores that count c / d times."""
        if self.softcap or self.factors or not 0 < self.scale < np.inf:
            raise Declined("softcap-form", "tanh over the scores is not left by one factor above 0", at=node)
        inner = _first(node)
        divided, divisor = _divisor(inner)
        self.softcap = self.scale
        if divisor is None or not np.isclose(self.scale, divisor, rtol=1e-6):
            return inner  # the number below the tanh, if any, is the next factor
        self.scale = 1.0
        return divided

    def _neg(self, node: ir.Node) -> ir.Value:
        return self._minus(_first(node))

    def _minus(self, value: ir.Value) -> ir.Value:
        self.scale = -self.scale
        return value

    def _div(self, node: ir.Node) -> ir.Value:
        left, right = _pair(node)
        number = scalar(right)
        if number == 0 or (number is None and not _per_head(right)):
            raise Declined("score-factor", f"the scores are divided by '{right.name}' {dims(right)}", at=node)
        if number is None:
            self.factors.append(Factor(right, "Div"))
        else:
            self.scale /= float(number)
        return left

    def _where(self, node: ir.Node) -> ir.Value:
        self._refuse_below_cap(node)
        condition, yes, no = (v for v in node.inputs if v is not None)
        for fill, path, kind in ((no, yes, "keep"), (yes, no, "drop")):
            number = _low(fill)
            if number is None:
                continue
            if self.factors or self.scale <= 0:
                raise Declined("score-factor", "a mask stands below a factor that may be negative", at=node)
            finite = None if np.isinf(number) else number * self.scale
            if finite is not None and finite > FORBIDS:
                raise Declined("mask-fill", f"{finite:g} is not low enough to forbid a key", at=node)
            half = node.outputs[0].dtype == ir.DataType.FLOAT16
            if finite is not None:
                if finite > (ABSORBS_HALF if half else ABSORBS):
                    self.assumptions.add("finite-fill")
                # Replaced scores are all alike: a lower fill means the same, and leaves nothing of larger scores.
                finite = min(finite, LOWEST_HALF if half else LOWEST)
            self.terms.append(Term(condition, kind, fill=finite))
            return path
        raise Declined("mask-fill", "neither arm of Where is a constant that forbids a key", at=node)

    def _concat(self, node: ir.Node) -> ir.Value:
        """Scores with one more column: a sink logit for each head."""
        rank = len(dims(node.outputs[0]) or ())
        if attribute(node, "axis") not in (-1, rank - 1) or len(node.inputs) != 2 or self._touched(rank):
            raise Declined("sink-form", "something is concatenated to the scores in an unknown way", at=node)
        path, column = _pair(node)
        self.sink_first = not _holds_scores(path, beside=column)
        if self.sink_first:
            path, column = column, path
        self.sink = per_head_vector(column)
        if self.sink is None:
            raise Declined("sink-form", f"'{column.name}' {dims(column)} is not one logit for each head", at=node)
        return path

    def _pad(self, node: ir.Node) -> ir.Value:
        """Scores with a column of zeros, or of another number, in front or behind."""
        rank = len(dims(node.outputs[0]) or ())
        pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        wanted = [[0] * 2 * rank for _ in range(2)]
        if rank:
            wanted[0][-1] = wanted[1][rank - 1] = 1
        number = filling(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
        plain = attribute(node, "mode", "constant") == "constant" and (len(node.inputs) < 4 or node.inputs[3] is None)
        if pads is None or pads.tolist() not in wanted or number is None or not plain or self._touched(rank):
            raise Declined("sink-form", "the scores are padded in an unknown way", at=node)
        self.sink, self.sink_first = number, pads.tolist() == wanted[1]
        return _first(node)

    def _touched(self, rank: int) -> bool:
        """Whether something stands between the added column and the softmax."""
        scaled = bool(self.factors) or self.scale != 1.0
        return bool(self.terms) or scaled or bool(self.softcap) or self.sink is not None or rank not in (3, 4)

    def _refuse_below_cap(self, node: ir.Node) -> None:
        if self.softcap:
            raise Declined("softcap-form", "a mask or bias is added before the softcap", at=node)

    def _sides(self, node: ir.Node) -> tuple[ir.Value, ir.Value]:
        left, right = _pair(node)
        for path in (_PATH, _SIGNED):
            depths = _depth(left, path=path), _depth(right, path=path)
            if min(depths) < _FAR:
                return (left, right) if depths[0] <= depths[1] else (right, left)
        raise Declined("no-score-product", "neither operand comes from a matrix product", at=node)


_STEPS = {
    "Identity": _Walk._through,
    "Dropout": _Walk._through,
    "Cast": _Walk._cast,
    "CastLike": _Walk._through,
    "Reshape": _Walk._reshape,
    "Unsqueeze": _Walk._reshape,
    "Squeeze": _Walk._reshape,
    "Add": _Walk._add,
    "Max": _Walk._max,
    "Clip": _Walk._max,
    "Sub": _Walk._sub,
    "Mul": _Walk._mul,
    "Neg": _Walk._neg,
    "Div": _Walk._div,
    "Tanh": _Walk._tanh,
    "Where": _Walk._where,
    "Concat": _Walk._concat,
    "Pad": _Walk._pad,
}


def score_product(value: ir.Value) -> Product:
    """Walk up from the input of a softmax to the product of query and key.

    Raises:
        Declined: naming the first node whose meaning is not understood.
    """
    return _Walk().up(value)


def _keeps_last(view: View) -> bool:
    """Whether a view has the rows and columns of what it shows: of the names that masks bring in it knows nothing."""
    inner, outer = dims(view.inner), dims(view.outer)
    return inner is not None and outer is not None and inner[-2:] == outer[-2:] and None not in inner[-2:]


def _joins_rows(inner: Sequence[Size], outer: Sequence[Size]) -> bool:
    """Whether one of two views has the rows of all heads in one axis: (B * N * S, T)."""
    flat, apart = sorted((inner, outer), key=len)
    return len(flat) == 2 and len(apart) > 2 and flat[1] is not None and flat[1] == apart[-1] and flat[0] != apart[-2]


def _divisor(value: ir.Value) -> tuple[ir.Value, float | None]:
    """A quotient's dividend and the number that divides it, also written as a factor; None where it is no quotient."""
    node = producer(value, "Div", "Mul")
    if node is None:
        return value, None
    left, right = _pair(node)
    number = scalar(right)
    if number is None and node.op_type == "Mul":
        left, number = right, scalar(left)
    if number is None or number == 0:
        return value, None
    return left, float(number) if node.op_type == "Div" else 1.0 / float(number)


def _is_one_column(value: ir.Value, beside: ir.Value) -> bool:
    """Whether a value is one number for each row of another."""
    shape, rows = dims(value), dims(beside)
    if shape is None or rows is None or len(shape) > len(rows):
        return False
    return not shape or shape[-1] == 1


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _pair(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    left, right = node.inputs[:2]
    assert left is not None and right is not None
    return left, right


def _floored(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Pairs of what a Max, or a Clip with a lower bound alone, may keep above a number, and that number."""
    bounds = [v for v in node.inputs[1:] if v is not None]
    if len(bounds) != 1 or node.inputs[1] is None:
        return
    left, right = _pair(node)
    yield left, right
    if node.op_type == "Max":
        yield right, left


def _low(value: ir.Value) -> float | None:
    """The number a tensor is filled with when it is one very low number, else None."""
    number = filling(value)
    return number if number is not None and number < -1e3 else None


def filling(value: ir.Value | None) -> float | None:
    """The number that every element of a floating-point tensor is, None when it is not one."""
    array = constant(value)
    if array is None:
        node = producer(value, "Expand", "Cast", "Identity", "CastLike", "ConstantOfShape")
        if node is None or op_name(node) != "ConstantOfShape":
            return None if node is None else filling(_first(node))
        tensor = attribute(node, "value")
        array = np.zeros(1, np.float32) if tensor is None else tensor.numpy()
    if array.size == 0 or (array.dtype.kind not in "f" and array.dtype.name != "bfloat16"):
        return None
    number = float(array.reshape(-1)[0])
    same = array.size == 1 or bool(np.all(array == array.reshape(-1)[0]))
    return number if same else None


_SIGNED = frozenset(_STEPS)
#: A bias may be minus a product as well: a sign is looked through only where nothing else leads to the scores.
_PATH = _SIGNED - {"Neg"}
#: Steps after which no product is looked for.
_FAR = 24
_FIRST_ONLY = frozenset(("Sub", "Reshape", "Unsqueeze", "Squeeze", "Cast", "CastLike", "Dropout", "Pad"))


def leads_to_product(value: ir.Value) -> bool:
    """Whether a matrix product of float tensors is reached from a value through score-path operators alone."""
    return _depth(value) < _FAR


def _holds_scores(value: ir.Value, *, beside: ir.Value) -> bool:
    """Whether a value leads to the scores: with its sign changed only where the one beside it does not."""
    return leads_to_product(value) or (not leads_to_product(beside) and _depth(value, path=_SIGNED) < _FAR)


def _depth(value: ir.Value, *, path: Collection[str] = _PATH) -> int:
    """Steps from a value to the nearest MatMul of two computed tensors over operators of ``path``; else ``_FAR``."""
    frontier: Sequence[ir.Value] = [value]
    for depth in range(_FAR):
        following: list[ir.Value] = []
        for item in frontier:
            node = item.producer()
            if node is None:
                continue
            if op_name(node) in ("MatMul", "Einsum"):
                if all(v is not None and constant(v, limit=0) is None and not _weight(v) for v in node.inputs):
                    return depth
                continue
            if op_name(node) not in path:
                continue
            picked = node.inputs[1:] if node.op_type == "Where" else node.inputs
            first_only = node.op_type in _FIRST_ONLY
            following.extend(v for v in (picked[:1] if first_only else picked) if v is not None)
        if not following:
            return _FAR
        frontier = following
    return _FAR


def _weight(value: ir.Value) -> bool:
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return node.op_type in ("Transpose", "Cast", "Identity") and node.inputs[0] is not None and _weight(node.inputs[0])


def _per_head(value: ir.Value) -> bool:
    shape = dims(value)
    return shape is not None and (not shape or shape[-1] == 1) and (len(shape) < 2 or shape[-2] == 1)
