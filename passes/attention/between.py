"""Attention by its bare outline: a softmax that stands, whatever is done on the way, between two matrix products.

Rules recognise attention whose every operator they understand. This module finds the others too, so that none is
overlooked: it asks only where the logits come from and where the weights go, through any operator at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from ..graph import attribute, dims, op_name, producer
from ..letters import letters_of

__all__ = ["Between", "between", "is_learned", "softmaxes", "written_logits"]

#: Nodes looked at on either side: sliding chunks put some two hundred between their products and the softmax.
UP, DOWN = 480, 240
#: Where another attention begins: nothing beyond belongs to this one.
_OTHERS: Final = frozenset({"Softmax", "LogSoftmax"})
_PRODUCTS: Final = frozenset({"MatMul", "Einsum", "Gemm"})
_VIEWS: Final = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Expand", "Flatten"})
#: Operators that cut the scores up or put pieces of them together.
_PLUMBING: Final = frozenset(
    "Slice,Concat,Pad,Split,Gather,GatherND,GatherElements,ScatterND,ScatterElements".split(",")  # noqa: SIM905
)
#: Operators that only hand a constant on in another form.
_HANDS_ON: Final = frozenset(
    "Transpose,Cast,CastLike,Identity,Reshape,Expand,Unsqueeze,Squeeze,Slice,DequantizeLinear".split(",")  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Between:
    """The operators between the score product and the weights, and between the weights and the value product.

    Attributes:
        up, down: These operators.
        products: The two products.
        over_keys: Whether the value product sums over the axis that the softmax does; None where that was lost.
    """

    up: tuple[ir.Node, ...]
    down: tuple[ir.Node, ...]
    products: tuple[ir.Node, ir.Node]
    over_keys: bool | None = None

    @property
    def summed(self) -> bool:
        """Whether a product is written as a sum over element-wise products."""
        return any(n.op_type == "ReduceSum" for n in self.products)

    @property
    def apart(self) -> bool:
        """Whether the scores are distances of queries from keys."""
        factors = producer(self.products[0].inputs[0], "Mul") if op_name(self.products[0]) == "ReduceSum" else None
        return factors is not None and factors.inputs[0] is factors.inputs[1]

    @property
    def chunked(self) -> bool:
        """Whether the scores are put together from pieces of products, or taken apart again."""
        return sum(n.op_type in _PLUMBING for n in self.up) > 1 or any(n.op_type == "Pad" for n in self.down)


def softmaxes(graph: ir.Graph) -> Iterable[ir.Node]:
    """Every softmax that is an attention's, recognised or not; one written as exp over sum by its division."""
    return [n for n in graph.all_nodes() if between(n) is not None]


def between(node: ir.Node) -> Between | None:
    """What surrounds the softmax of an attention; None for any other node.

    A softmax is an attention's when its logits come from a product of two tensors that depend on the input (the
    query may be learned) and its weights reach another such product. Routers and classifiers have a weight in
    the place of the keys.
    """
    if op_name(node) == "Softmax":
        logits = node.inputs[0]
    else:
        logits = written_logits(node)
    shape = dims(node.outputs[0])
    if logits is None or (shape is not None and len(shape) < 2):
        return None
    axis = _softmax_axis(node, shape)
    up = _search(logits, axis, upwards=True)
    if up is None:
        return None
    down = _search(node.outputs[0], axis, upwards=False)
    return None if down is None else Between(up[0], down[0], (up[1], down[1]), down[2])


def _softmax_axis(node: ir.Node, shape: Sequence[object] | None) -> int:
    """The axis a softmax sums over, counted from the last (1); 0 where an unknown rank does not tell."""
    axis = int(attribute(node, "axis", -1)) if op_name(node) == "Softmax" else -1
    if shape is None:
        return max(-axis, 0)
    return len(shape) - axis % len(shape)


def written_logits(node: ir.Node) -> ir.Value | None:
    """What a softmax written out takes the exponential of: of exp(x) / sum(exp(x)), however masked or guarded."""
    if op_name(node) not in ("Div", "Mul") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    if op_name(node) == "Mul":
        reciprocal = producer(right, "Reciprocal")
        right = None if reciprocal is None else reciprocal.inputs[0]
    exponential = _reached(left, "Exp", 6)
    total = _reached(right, "ReduceSum", 6)
    if exponential is None or total is None or _reached(total.inputs[0], "Exp", 6) is not exponential:
        return None
    return exponential.inputs[0]


def _reached(value: ir.Value | None, op: str, steps: int) -> ir.Node | None:
    """The nearest node of one kind above a value, over element-wise operators."""
    frontier = [value]
    for _ in range(steps):
        nodes = [n for v in frontier if v is not None and (n := v.producer()) is not None]
        found = next((n for n in nodes if op_name(n) == op), None)
        if found is not None:
            return found
        frontier = [
            v
            for n in nodes
            if n.op_type in ("Add", "Mul", "Where", "Cast", "Identity", "Max", "Clip")
            for v in n.inputs
        ]
    return None


def _search(start: ir.Value, axis: int, *, upwards: bool) -> tuple[tuple[ir.Node, ...], ir.Node, bool | None] | None:
    """The nodes from a value to the nearest product of computed tensors, and it; None when there is none.

    ``axis`` counts from the last (1) and is followed where that is plain; 0 means it was lost on the way. Last comes
    whether the product sums over it.
    """
    came: dict[int, ir.Node | None] = {}
    queue: deque[tuple[ir.Value, int, ir.Node | None]] = deque([(start, axis, None)])
    while queue and len(came) < (UP if upwards else DOWN):
        value, axis, before = queue.popleft()
        for node in _neighbours(value, upwards):
            if id(node) in came:
                continue
            came[id(node)] = before
            if op_name(node) in _PRODUCTS:
                if _is_product(node, axis) if upwards else _weighs(node, value):
                    return _trail(before, came), node, _sums_over(node, value, axis)
                if not _mixes(node, value, axis, upwards):
                    continue
            elif _sums_products(node):
                return _trail(before, came), node, None
            elif _ends(node):
                continue
            queue.extend((v, _follow(node, value, v, axis, upwards), node) for v in _onwards(node, upwards))
    return None


def _neighbours(value: ir.Value, upwards: bool) -> list[ir.Node]:
    if not upwards:
        return list({id(u.node): u.node for u in value.uses()}.values())
    node = value.producer()
    return [] if node is None else [node]


def _onwards(node: ir.Node, upwards: bool) -> Iterator[ir.Value]:
    for value in node.inputs if upwards else node.outputs:
        if value is not None and (value.dtype is None or value.dtype.is_floating_point()):
            yield value


def _trail(node: ir.Node | None, came: dict[int, ir.Node | None]) -> tuple[ir.Node, ...]:
    found = []
    while node is not None:
        found.append(node)
        node = came[id(node)]
    return tuple(reversed(found))


def _ends(node: ir.Node) -> bool:
    return op_name(node) in _OTHERS or "Attention" in node.op_type or written_logits(node) is not None


def _is_product(node: ir.Node, axis: int) -> bool:
    """Whether a product gives scores: keys that depend on the input, and a query that does or is learned."""
    pair = [v for v in node.inputs[:2] if v is not None]
    if len(pair) != 2 or (len(node.inputs) > 2 and op_name(node) == "Einsum"):
        return False
    learned = [is_learned(v) for v in pair]
    if not any(learned):
        return True
    if all(learned) or axis == 0:
        return False
    of_keys = _operand_of(node, axis)
    return of_keys is not None and not learned[of_keys] and _is_query(node, pair[1 - of_keys], 1 - of_keys)


def _sums_products(node: ir.Node) -> bool:
    """Whether a product of two computed tensors is written as a sum over products of what each has and the other not.

    So are scores, (S, 1, H) times (1, T, H), and weighted values, (S, T, 1) times (1, T, H); distances, the squares of
    (S, 1, H) less (1, T, H), are counted as such scores.
    """
    factors = producer(node.inputs[0], "Mul") if op_name(node) == "ReduceSum" else None
    if factors is not None and factors.inputs[0] is factors.inputs[1]:
        factors = producer(factors.inputs[0], "Sub")
    if factors is None or any(v is None or is_learned(v) for v in factors.inputs):
        return False
    left, right = (dims(v) for v in factors.inputs)
    if left is None or right is None:
        return False
    pairs = list(zip(reversed(left), reversed(right), strict=False))
    return any(a == 1 != b for a, b in pairs) and any(b == 1 != a for a, b in pairs)


def _is_query(node: ir.Node, value: ir.Value, position: int) -> bool:
    """Whether a learned operand stands where attention writes its query, and a linear layer never its weight."""
    rank = len(dims(value) or ())
    return rank >= 2 and (op_name(node) == "Einsum" or (op_name(node) == "MatMul" and position == 0))


def _operand_of(node: ir.Node, axis: int) -> int | None:
    """Which operand of a product an axis of its result (counted from the last) comes from alone."""
    if op_name(node) != "Einsum":
        return {1: 1, 2: 0}.get(axis)
    *terms, result = _letters(node)
    if len(terms) != 2 or not 0 < axis <= len(result):
        return None
    found = [i for i, term in enumerate(terms) if result[-axis] in term]
    return found[0] if len(found) == 1 else None


def _letters(node: ir.Node) -> list[str]:
    """The letters of the operands of an Einsum, then those of its result."""
    return letters_of(node) or [""] * (len(node.inputs) + 1)


def _weighs(node: ir.Node, weights: ir.Value) -> bool:
    """Whether a product weighs something computed with these weights."""
    others = [v for v in node.inputs if v is not None and v is not weights]
    return bool(others) and not any(is_learned(v) for v in others)


def _sums_over(node: ir.Node, weights: ir.Value, axis: int) -> bool | None:
    """Whether a product sums over an axis (from the last) of one of its operands; None where that is not plain."""
    if not axis or weights not in node.inputs:
        return None
    if op_name(node) == "MatMul":
        return axis == (1 if node.inputs[0] is weights else 2)
    if op_name(node) != "Einsum":
        return None
    term, result = _term(node, weights), _letters(node)[-1]
    return term[-axis] not in result if axis <= len(term) else None


def _mixes(node: ir.Node, value: ir.Value, axis: int, upwards: bool) -> bool:
    """Whether a product with a weight leaves the axis of the keys alone: it mixes heads, say."""
    learned = [is_learned(v) for v in node.inputs[: 2 if op_name(node) == "Gemm" else None] if v is not None]
    if not axis or learned.count(True) != 1 or len(learned) != 2:
        return False
    if op_name(node) == "MatMul":
        return axis != (1 if learned[1] else 2)
    if op_name(node) == "Gemm":  # a linear layer over rows
        return learned[1] and axis != 1 and not attribute(node, "transA", 0)
    if op_name(node) != "Einsum":
        return False
    terms = _letters(node)
    here = terms[-1] if upwards else terms[node.inputs.index(value)]
    return axis <= len(here) and here[-axis] not in terms[learned.index(True)] and here[-axis] in terms[-1]


def is_learned(value: ir.Value, steps: int = 8) -> bool:
    """Whether a value is a constant in another form."""
    for _ in range(steps):
        node = value.producer()
        if node is None:
            return value.const_value is not None and not value.is_graph_input()
        if node.op_type == "Constant":
            return True
        if node.op_type not in _HANDS_ON or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def _follow(node: ir.Node, here: ir.Value, there: ir.Value, axis: int, upwards: bool) -> int:
    """Where an axis (from the last) of one value of a node stands in the next one; 0 where that is not plain."""
    shape, after = dims(here), dims(there)
    if not axis or shape is None or after is None or len(shape) < axis:
        return 0
    if op_name(node) == "Transpose":
        perm = list(attribute(node, "perm", ())) or list(reversed(range(len(shape))))
        at = len(shape) - axis
        return len(perm) - (perm[at] if upwards else perm.index(at))
    if op_name(node) == "Einsum":
        from_, to = (_letters(node)[-1], _term(node, there)) if upwards else (_term(node, here), _letters(node)[-1])
        letter = from_[-axis] if axis <= len(from_) else ""
        return len(to) - to.index(letter) if letter and letter in to else 0
    if node.op_type in _VIEWS:
        return _in_view(shape, after, axis)
    return axis if len(after) >= axis else 0


def _in_view(shape: Sequence[object], after: Sequence[object], axis: int) -> int:
    """Where an axis (from the last) stands in another view; rows put into one axis count as each of them."""
    if shape[len(shape) - axis :] == after[max(len(after) - axis, 0) :]:
        return axis
    wide, wide_after = ([n for n, d in enumerate(s) if d != 1] for s in (shape, after))
    at = len(shape) - axis
    if at in wide and [shape[n] for n in wide] == [after[n] for n in wide_after]:
        return len(after) - wide_after[wide.index(at)]
    in_rows = after[-1:] == (1,) or (axis >= 2 and shape[-1] == after[-1])
    return 2 if in_rows and len(after) == 2 else 0


def _term(node: ir.Node, operand: ir.Value) -> str:
    return _letters(node)[list(node.inputs).index(operand)]
