"""ATT001: attention written by hand, found from its softmax."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from .. import canonical
from ..graph import Builder, attribute, dims, op_name, producer, scalar
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from ..symbols import quotient
from .scores import Product, Term, View, leads_to_product, score_product, swaps_last

__all__ = ["SoftmaxAttention", "attends", "softmaxes"]


@dataclass(frozen=True, slots=True)
class Downward:
    """The way from the softmax to the product with the value.

    Attributes:
        node: The MatMul with the value.
        guarded: Whether NaN rows are replaced by 0 on the way.
        probabilities: The value the MatMul reads.
        views: Reshapes on the way, softmax first.
        sliced: Whether the last column is left out on the way.
    """

    node: ir.Node
    guarded: bool
    probabilities: ir.Value
    views: tuple[View, ...]
    sliced: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the canonical node needs, and the values it replaces."""

    softmax: ir.Node
    product: Product
    down: Downward
    heads: int | None
    weights_read: bool


class SoftmaxAttention(Rule):
    """Attention written as matrix product, softmax, matrix product.

    ## What it finds
    A softmax over the last axis whose input leads up, through scales, caps, biases, masks, casts and reshapes of
    leading axes, to a product of query and key, and whose output leads down, through casts, dropout and NaN
    guards, to a product with the value. Three- and four-dimensional products alike.

    ## Why
    One canonical node holds what the code meant, whichever way it was written; lowerings read nothing else.

    ## Before -> After
    ``MatMul(softmax(mask(MatMul(q, k^T) * scale) + bias), v)`` -> ``canonical::Attention(q, k, v, mask, bias)``.
    A finite fill becomes a bias of 0 and that number, minus infinity a boolean mask.

    ## When it declines
    ``no-score-product`` (the softmax is not over scores, or an operator on the way is not understood),
    ``score-layout``, ``score-factor``, ``mask-fill``, ``softcap-form``, ``weights-changed`` (something other
    than a guard stands between the softmax and the value: talking heads, re-weighting).

    ## Numerics
    ROUNDING: the scale may move from query or key onto the scores.

    ## References
    Vaswani et al., Attention Is All You Need, 2017, section 3.2.1.
    """

    code = "ATT001"
    name = "softmax-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({"Softmax"})
    emits = (f"{canonical.DOMAIN}::{canonical.NAME}",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        if not attends(node):
            if weighs(node):
                raise Declined("weights-changed", "the weights are changed between softmax and value", at=node)
            raise Declined("no-match", "a softmax that attends to nothing")
        down = _down(node)
        scores = node.inputs[0]
        assert scores is not None
        product = score_product(scores)
        query, key = product.node.inputs
        assert query is not None and key is not None
        if (product.sink is not None) != down.sliced:
            raise Declined("sink-form", "a logit is added to the scores or a weight dropped, not both", at=node)
        if product.widened and down.node.outputs[0].dtype == ir.DataType.FLOAT:
            raise Declined("softmax-dtype", "the softmax is wider than its scores and stays so", at=node)
        return Facts(node, product, down, _lifted_heads(query, key, down.node.inputs[1]), _read_elsewhere(node, down))

    def build(self, facts: Facts, g: Builder) -> Replacement:
        frame = _Frame(facts, g)
        query, key, value = frame.operands()
        mask, bias, zero = frame.masks()
        inputs = [query, key, value, mask, bias, frame.sink(query)]
        while inputs[-1] is None:
            inputs.pop()
        outputs = 2 if facts.weights_read else 1
        made = g.op(
            f"{canonical.DOMAIN}::{canonical.NAME}",
            *inputs,
            outputs=outputs,
            dtype=query.dtype,
            shape=frame.output_shape(query, value),
            scale=frame.scale,
            causal="none",
            softcap=facts.product.softcap or None,
            empty_rows="zero" if facts.down.guarded or zero else "as_written",
            origin="softmax",
        )
        output = made[0] if outputs == 2 else made
        old, new = [facts.down.node.outputs[0]], [frame.back(output, facts.down.node.outputs[0])]
        if outputs == 2:
            old.append(facts.softmax.outputs[0])
            new.append(frame.back(made[1], facts.softmax.outputs[0]))
        return Replacement(old=old, new=new)


def attends(softmax: ir.Node) -> bool:
    """Whether a softmax over the last axis is multiplied, as weights, with something computed."""
    rank = len(dims(softmax.outputs[0]) or ()) or 4
    if attribute(softmax, "axis", -1) not in (-1, rank - 1) or rank < 3:
        return False
    try:
        _down(softmax)
    except Declined as no:
        return no.reason == "weights-changed"
    return True


def _down(softmax: ir.Node) -> Downward:
    value, guarded, sliced = softmax.outputs[0], False, False
    views: list[View] = []
    for _ in range(12):
        step = _next(value)
        if step is None:
            raise Declined("no-match", "the softmax is no attention")
        node, is_guard = step
        if op_name(node) == "MatMul":
            if node.inputs[0] is not value or _is_weight(node.inputs[1]):
                raise Declined("no-match", "the softmax is no attention")
            return Downward(node, guarded, value, tuple(views), sliced)
        guarded, sliced = guarded or is_guard, sliced or node.op_type == "Slice"
        if node.op_type in ("Reshape", "Unsqueeze", "Squeeze"):
            views.append(View(value, node.outputs[0]))
        value = node.outputs[0]
    raise Declined("no-match", "the softmax is no attention")


def _next(value: ir.Value) -> tuple[ir.Node, bool] | None:
    """The node that carries the weights on, and whether it is a NaN guard."""
    users = {id(u.node): u.node for u in value.uses()}.values()
    guards = [n for n in users if op_name(n) == "Where" and _guards(n, value)]
    if guards:
        return guards[0], True
    for node in users:
        if op_name(node) == "MatMul":
            return node, False
    for node in users:
        if op_name(node) in ("Cast", "CastLike", "Identity", "Dropout", "Reshape", "Unsqueeze", "Squeeze"):
            return node, False
        if op_name(node) == "Slice" and _drops_last(node):
            return node, False
    return None


def _drops_last(node: ir.Node) -> bool:
    """Whether a Slice leaves out the last column alone: the weight that went to the sink."""
    if len(node.inputs) < 4 or scalar(node.inputs[1]) != 0 or scalar(node.inputs[2]) != -1:
        return False
    step = scalar(node.inputs[4]) if len(node.inputs) > 4 else 1
    rank = len(dims(node.outputs[0]) or ())
    return scalar(node.inputs[3]) in (-1, rank - 1) and step == 1


def _guards(where: ir.Node, value: ir.Value) -> bool:
    test = producer(where.inputs[0], "IsNaN")
    return test is not None and test.inputs[0] is value and where.inputs[2] is value and scalar(where.inputs[1]) == 0


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and not value.is_graph_input()


def _read_elsewhere(softmax: ir.Node, down: Downward) -> bool:
    """Whether the attention weights have a reader besides the value product (guards and casts on the way aside)."""
    value: ir.Value = softmax.outputs[0]
    while True:
        if value.is_graph_output():
            return True
        users = {id(u.node): u.node for u in value.uses()}
        step = _next(value)
        assert step is not None
        node, guard = step
        others = [n for n in users.values() if n is not node and not (guard and op_name(n) == "IsNaN")]
        if others:
            return True
        if node is down.node:
            return False
        value = node.outputs[0]


def _lifted_heads(query: ir.Value, key: ir.Value, value: ir.Value | None) -> int | None:
    """Head count of a (B * N, S, H) product, when its operands show it; None for four-dimensional ones."""
    shape = dims(query)
    if shape is None or len(shape) != 3:
        return None
    for operand in (query, value, key):
        heads = _merged_heads(operand)
        if heads is not None:
            return heads
    return 1


def _merged_heads(value: ir.Value | None) -> int | None:
    """Heads that a reshape merged into the batch: from (B, N, S, H), or split off a width of N * H."""
    size = (dims(value) or (None,))[-1]
    node = producer(value, *_HEAD_PATH)
    for _ in range(6):
        if node is None or node.inputs[0] is None:
            return None
        source, result = dims(node.inputs[0]), dims(node.outputs[0])
        if node.op_type == "Reshape" and source is not None and result is not None:
            if len(source) == 4 and isinstance(source[1], int):
                return source[1]
            width = source[-1]
            if len(source) == 3 and result[-1] == size and isinstance(width, int) and isinstance(size, int):
                return width // size if width % size == 0 else None
        node = producer(node.inputs[0], *_HEAD_PATH)
    return None


_HEAD_PATH = ("Reshape", "Transpose", "Mul", "Div", "Cast", "Identity")


class _Frame:
    """Brings operands, masks and results to (B, N, S, H) and back."""

    def __init__(self, facts: Facts, g: Builder) -> None:
        self.facts = facts
        self.g = g
        self.scale = facts.product.scale
        query = facts.product.node.inputs[0]
        assert query is not None
        self.rank = len(dims(query) or ())
        if self.rank not in (3, 4):
            raise Declined("score-layout", f"the score product has rank {self.rank}", at=query)

    def operands(self) -> tuple[ir.Value, ir.Value, ir.Value]:
        g = self.g
        left, right = self.facts.product.node.inputs
        value = self.facts.down.node.inputs[1]
        assert left is not None and right is not None and value is not None
        query = self._descale(left)
        transposed = producer(right, "Transpose")
        if transposed is not None and swaps_last(transposed):
            key = transposed.inputs[0]
            assert key is not None
            key = self._descale(key)
        else:
            right = self._descale(right)
            shape = list(right.shape) if right.shape is not None else [None] * self.rank
            perm = [*range(self.rank - 2), self.rank - 1, self.rank - 2]
            key = g.op("Transpose", right, perm=perm, shape=[*shape[:-2], shape[-1], shape[-2]])
        for factor in self.facts.product.factors:
            query = g.op("Mul", query, factor, shape=query.shape)
        return self.lift(query), self.lift(key), self.lift(value)

    def _descale(self, value: ir.Value) -> ir.Value:
        """Take constant scalar factors off an operand and into the scale."""
        while True:
            node = producer(value, "Mul", "Div")
            if node is None:
                return value
            left, right = node.inputs
            number = scalar(right)
            if number is None and node.op_type == "Mul":
                left, right, number = right, left, scalar(left)
            if number is None or left is None or number == 0:
                return value
            self.scale = self.scale * number if node.op_type == "Mul" else self.scale / number
            value = left

    def lift(self, value: ir.Value) -> ir.Value:
        """(B * N, S, H) to (B, N, S, H)."""
        shape = dims(value)
        if shape is None or len(shape) == 4:
            return value
        if len(shape) != 3:
            raise Declined("score-layout", f"an operand of the attention has rank {len(shape)}", at=value)
        heads = self.facts.heads or 1
        reshape = producer(value, "Reshape")
        if reshape is not None and reshape.inputs[0] is not None:
            source = dims(reshape.inputs[0])
            if source is not None and len(source) == 4 and source[1] == heads and source[2:] == shape[1:]:
                return reshape.inputs[0]
        tail = self.g.op("Shape", value, start=1, end=3, dtype=ir.DataType.INT64, shape=[2])
        lead = self.g.const(np.array([-1, heads], np.int64))
        target = self.g.op("Concat", lead, tail, axis=0, dtype=ir.DataType.INT64, shape=[4])
        assert value.shape is not None
        batch = quotient(value.shape[0], heads)
        return self.g.op("Reshape", value, target, shape=[batch, heads, value.shape[1], value.shape[2]])

    def masks(self) -> tuple[ir.Value | None, ir.Value | None, bool]:
        """(keep mask, bias, whether a mask gives zeros in empty rows)."""
        keep: ir.Value | None = None
        bias: ir.Value | None = None
        for term in self.facts.product.terms:
            if term.kind == "bias" or term.fill is not None:
                bias = self._plus(bias, self._through(self._as_bias(term), term))
                continue
            one = term.value
            if term.kind == "drop":
                one = self.g.op("Not", one, dtype=ir.DataType.BOOL, shape=one.shape)
            one = self._through(one, replace(term))
            keep = one if keep is None else self.g.op("And", keep, one, dtype=ir.DataType.BOOL)
        return keep, bias, False

    def _plus(self, left: ir.Value | None, right: ir.Value) -> ir.Value:
        return right if left is None else self.g.op("Add", left, right)

    def _as_bias(self, term: Term) -> ir.Value:
        g = self.g
        query = self.facts.product.node.inputs[0]
        assert query is not None
        if term.kind == "bias":
            value = term.value
            if value.dtype is not None and query.dtype is not None and value.dtype != query.dtype:
                value = g.op("Cast", value, to=query.dtype, dtype=query.dtype, shape=value.shape)
            if term.factor != 1.0:
                value = g.op("Mul", value, g.scalar(term.factor, like=value), shape=value.shape)
            for factor in term.factors:
                value = g.op("Mul", value, factor)
            return value
        zero, fill = g.scalar(0.0, like=query), g.scalar(term.fill or 0.0, like=query)
        arms = (zero, fill) if term.kind == "keep" else (fill, zero)
        return g.op("Where", term.value, *arms, dtype=query.dtype, shape=term.value.shape)

    def _through(self, value: ir.Value, term: Term) -> ir.Value:
        """Carry a term from its own view of the scores to (B, N, S, T)."""
        shape = dims(value)
        views = [v for v in term.views if dims(v.outer) != dims(v.inner)]
        product = self.facts.product.node.outputs[0]
        if views and shape is not None:
            lead = len(dims(views[0].outer) or ()) - 2
            if all(d == 1 for d in (1,) * max(0, lead - len(shape) + 2)) and all(d == 1 for d in shape[:-2]):
                return self._squeezed(value, shape)
            value = self._viewed(value, views)
            shape = dims(value)
        if self.rank == 3 and not (views and len(dims(value) or ()) == 4):
            return self._lifted_mask(value, product)
        return value

    def _squeezed(self, value: ir.Value, shape: tuple[int | str | None, ...]) -> ir.Value:
        """A term that depends on query and key alone fits every view once its leading ones are gone."""
        if len(shape) <= 2:
            return value
        assert value.shape is not None
        axes = self.g.const(np.arange(len(shape) - 2, dtype=np.int64))
        return self.g.op("Squeeze", value, axes, dtype=value.dtype, shape=list(value.shape)[-2:])

    def _viewed(self, value: ir.Value, views: list[View]) -> ir.Value:
        """Expand the leading axes to those of the outer view, then reshape them to the inner one."""
        g = self.g
        outer, inner = views[0].outer, views[-1].inner
        if self.rank == 3 and len(dims(outer) or ()) == 4:
            return value
        rank_out, rank_in = len(dims(outer) or ()), len(dims(inner) or ())
        ones = g.const(np.array([1, 1], np.int64))
        lead_out = g.op("Shape", outer, start=0, end=rank_out - 2, dtype=ir.DataType.INT64)
        lead_in = g.op("Shape", inner, start=0, end=rank_in - 2, dtype=ir.DataType.INT64)
        wide = g.op("Expand", value, g.op("Concat", lead_out, ones, axis=0), dtype=value.dtype)
        tail = g.op("Shape", wide, start=-2, dtype=ir.DataType.INT64)
        target = g.op("Concat", lead_in, tail, axis=0, dtype=ir.DataType.INT64)
        shape = None if inner.shape is None or value.shape is None else [*inner.shape[:-2], *list(value.shape)[-2:]]
        return g.op("Reshape", wide, target, dtype=value.dtype, shape=shape)

    def _lifted_mask(self, value: ir.Value, product: ir.Value) -> ir.Value:
        shape = dims(value)
        if shape is None:
            raise Declined("score-layout", f"the rank of the mask '{value.name}' is not known", at=value)
        if len(shape) < 3 or (len(shape) == 3 and shape[0] == 1) or len(shape) == 4:
            return value
        if self.facts.heads in (None, 1):
            axes = self.g.const(np.array([1], np.int64))
            assert value.shape is not None
            return self.g.op(
                "Unsqueeze", value, axes, dtype=value.dtype, shape=[value.shape[0], 1, *list(value.shape)[1:]]
            )
        return self.lift(value)

    def sink(self, query: ir.Value) -> ir.Value | None:
        """The sink logits as an (N,) tensor."""
        sink, heads, g = self.facts.product.sink, canonical.heads(query), self.g
        if sink is None or len(dims(sink) or ()) == 1:
            return sink
        if heads is None:
            raise Declined("unknown-heads", "the head count of a site with a sink must be fixed", at=query)
        flat = g.op("Reshape", sink, g.const(np.array([-1], np.int64)), dtype=sink.dtype, shape=[None])
        return g.op("Expand", flat, g.const(np.array([heads], np.int64)), dtype=sink.dtype, shape=[heads])

    def output_shape(self, query: ir.Value, value: ir.Value) -> list[object] | None:
        if query.shape is None or value.shape is None or len(query.shape) != 4 or len(value.shape) != 4:
            return None
        return [*list(query.shape)[:3], value.shape[3]]

    def back(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """Give a (B, N, S, X) result the shape of what it replaces."""
        shape = dims(like)
        if shape is None or len(shape) == 4:
            return value
        tail = self.g.op("Shape", value, start=2, end=4, dtype=ir.DataType.INT64, shape=[2])
        lead = self.g.const(np.array([-1], np.int64))
        target = self.g.op("Concat", lead, tail, axis=0, dtype=ir.DataType.INT64, shape=[3])
        return self.g.op("Reshape", value, target, dtype=like.dtype, shape=like.shape)


def softmaxes(graph: ir.Graph) -> Iterable[ir.Node]:
    """Every softmax that is an attention's, recognised or not."""
    return [n for n in graph.all_nodes() if op_name(n) == "Softmax" and (attends(n) or weighs(n))]


def weighs(softmax: ir.Node) -> bool:
    """Whether a softmax over a product of two computed tensors ends, somehow, in another such product.

    That is an attention whose weights are changed on the way: talking heads, re-normalised or mixed weights.
    """
    scores = softmax.inputs[0]
    rank = len(dims(softmax.outputs[0]) or ())
    if scores is None or rank < 3 or attribute(softmax, "axis", -1) not in (-1, rank - 1):
        return False
    if not leads_to_product(scores):
        return False
    frontier = [softmax.outputs[0]]
    for _ in range(10):
        users = {id(u.node): u.node for v in frontier for u in v.uses()}.values()
        if any(op_name(n) in ("MatMul", "Einsum") and not any(_is_weight(v) for v in n.inputs) for n in users):
            return True
        frontier = [o for n in users for o in n.outputs]
    return False


def _text(body: str, inputs: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g ({inputs}) => (float[B,4,S,16] y) {{
{body}
}}"""


_QKV = "float[B,4,S,16] q, float[B,4,T,16] k, float[B,4,T,16] v"
_SCORES = "  kt = Transpose <perm = [0, 1, 3, 2]> (k)\n  s = MatMul (q, kt)\n"

SoftmaxAttention.examples = (
    Example(
        text=_text(
            _SCORES + "  c = Constant <value_float = 0.25> ()\n  x = Mul (s, c)\n"
            "  p = Softmax <axis = -1> (x)\n  y = MatMul (p, v)",
            _QKV,
        ),
        fires=1,
        emits={f"{canonical.DOMAIN}::{canonical.NAME}": 1},
    ),
    Example(
        text=_text(
            _SCORES + "  f = Constant <value_float = -inf> ()\n  x = Where (m, s, f)\n"
            "  p = Softmax <axis = -1> (x)\n  y = MatMul (p, v)",
            _QKV + ", bool[B,1,S,T] m",
        ),
        fires=1,
        emits={f"{canonical.DOMAIN}::{canonical.NAME}": 1},
    ),
    Example(
        text=_text(_SCORES + "  x = Sin (s)\n  p = Softmax <axis = -1> (x)\n  y = MatMul (p, v)", _QKV),
        because="no-score-product",
    ),
    Example(
        text=_text(
            _SCORES + "  f = Constant <value_float = -5000.0> ()\n  x = Where (m, s, f)\n"
            "  p = Softmax <axis = -1> (x)\n  y = MatMul (p, v)",
            _QKV + ", bool[B,1,S,T] m",
        ),
        because="mask-fill",
    ),
)
