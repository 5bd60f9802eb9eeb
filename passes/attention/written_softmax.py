"""ATT003: a softmax written as exponential over its sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, constant, dims, producer, scalar
from ..rule import Context, Declined, Example, Replacement, Rule, Safety

__all__ = ["WrittenSoftmax"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The quotient, the logits, the logit that an extra term of the denominator stands for (None: none).

    ``raw`` says that no maximum is taken off: a row of finite masks then sums to 0 and gives NaN.
    """

    node: ir.Node
    logits: ir.Value
    extra: float | None
    raw: bool = False


class WrittenSoftmax(Rule):
    """exp(x) / sum(exp(x)) over the last axis, with or without the maximum taken off first.

    ## What it finds
    Div of an Exp by the ReduceSum of the same Exp over the last axis (keepdims), or Mul by its Reciprocal. The
    exponent may have its row maximum subtracted; Exp of LogSoftmax is the same. A denominator with one more
    term, ``1 + sum(exp(x))`` or ``exp(-max) + sum(exp(x - max))``, is a softmax with one more logit of 0
    (softmax-off-by-one).

    ## Why
    Attention is recognised from its softmax, however that was written.

    ## Before -> After
    ``Exp(x - max(x)) / ReduceSum(Exp(x - max(x)))`` -> ``Softmax(x)``; with the extra term
    ``Slice(Softmax(Concat(x, 0)))``.

    ## When it declines
    ``softmax-axis`` when the sum is not over the last axis alone, ``softmax-term`` when something unknown is
    added to the sum (an epsilon, say: a softmax has none).

    ## Numerics
    ROUNDING. Without the maximum the source overflows where the softmax does not, and gives NaN in rows that a
    finite mask empties: the named assumption fully-masked-rows.

    ## References
    Miller, Attention Is Off By One, 2023.
    """

    code = "ATT003"
    name = "written-softmax"
    safety = Safety.ROUNDING
    anchors = frozenset({"Div", "Mul", "Exp"})
    emits = ("Softmax",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        if node.op_type == "Exp":
            return _logarithm(node)
        exponential, total = _quotient(node)
        exp = producer(exponential, "Exp")
        if exp is None or total is None:
            raise Declined("no-match", "no exponential over a sum")
        total, extra = _extra_term(total, exp)
        reduce = producer(total, "ReduceSum")
        if reduce is None or reduce.inputs[0] is not exponential:
            raise Declined("no-match", "no exponential over its own sum")
        if not _over_last(reduce):
            raise Declined("softmax-axis", "the sum is not over the last axis alone", at=reduce)
        assert exp.inputs[0] is not None
        if extra is _UNKNOWN:
            raise Declined("softmax-term", "something other than a power of e is added to the sum", at=node)
        logits = _without_maximum(exp.inputs[0])
        return Facts(node, logits, extra, raw=logits is exp.inputs[0])  # type: ignore[arg-type]

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        if facts.extra is None:
            made = g.op("Softmax", facts.logits, axis=-1, dtype=old.dtype, shape=old.shape)
            always = ("fully-masked-rows",) if facts.raw else ()
            return Replacement(old=[old], new=[made], always=always)
        rank = len(dims(old) or ())
        axis = g.const(np.array([-1], np.int64))
        lead = g.op("Shape", facts.logits, start=0, end=rank - 1, dtype=ir.DataType.INT64)
        size = g.op("Concat", lead, g.const(np.array([1], np.int64)), axis=0, dtype=ir.DataType.INT64)
        shape = list(old.shape) if old.shape is not None else [None] * rank
        column = g.op("Expand", g.scalar(facts.extra, like=old), size, dtype=old.dtype, shape=[*shape[:-1], 1])
        wide = g.op("Concat", facts.logits, column, axis=-1, dtype=old.dtype, shape=[*shape[:-1], None])
        soft = g.op("Softmax", wide, axis=-1, dtype=old.dtype, shape=wide.shape)
        zero, end = g.const(np.array([0], np.int64)), g.const(np.array([-1], np.int64))
        return Replacement(old=[old], new=[g.op("Slice", soft, zero, end, axis, dtype=old.dtype, shape=old.shape)])


_UNKNOWN = object()


def _logarithm(node: ir.Node) -> Facts:
    """exp(log_softmax(x)) over the last axis is softmax(x)."""
    log = producer(node.inputs[0], "LogSoftmax")
    rank = len(dims(node.outputs[0]) or ())
    if log is None or log.inputs[0] is None or attribute(log, "axis", -1) not in (-1, rank - 1):
        raise Declined("no-match", "no exponential of a logarithmic softmax")
    return Facts(node, log.inputs[0], None)


def _quotient(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    left, right = node.inputs
    if node.op_type == "Div":
        return left, right
    for first, second in ((left, right), (right, left)):
        reciprocal = producer(second, "Reciprocal")
        if reciprocal is not None:
            return first, reciprocal.inputs[0]
    return None, None


def _extra_term(total: ir.Value, exp: ir.Node) -> tuple[ir.Value, object]:
    add = producer(total, "Add")
    if add is None:
        return total, None
    for part, other in ((add.inputs[0], add.inputs[1]), (add.inputs[1], add.inputs[0])):
        if producer(part, "ReduceSum") is None or part is None:
            continue
        maximum = _maximum_of(exp.inputs[0])
        power = producer(other, "Exp")
        if maximum is None and scalar(other) == 1:
            return part, 0.0
        if maximum is not None and power is not None:
            negative = producer(power.inputs[0], "Neg")
            if negative is not None and negative.inputs[0] is maximum:
                return part, 0.0
        return part, _UNKNOWN
    return total, None


def _maximum_of(value: ir.Value | None) -> ir.Value | None:
    sub = producer(value, "Sub")
    reduce = None if sub is None else producer(sub.inputs[1], "ReduceMax")
    if sub is None or reduce is None or reduce.inputs[0] is not sub.inputs[0] or not _over_last(reduce):
        return None
    return sub.inputs[1]


def _without_maximum(value: ir.Value) -> ir.Value:
    """A softmax is the same before and after its row maximum is taken off."""
    if _maximum_of(value) is None:
        return value
    sub = producer(value, "Sub")
    assert sub is not None and sub.inputs[0] is not None
    return sub.inputs[0]


def _over_last(reduce: ir.Node) -> bool:
    axes = attribute(reduce, "axes")
    if axes is None and len(reduce.inputs) > 1:
        array = constant(reduce.inputs[1])
        axes = None if array is None else array.tolist()
    rank = len(dims(reduce.inputs[0]) or ())
    return axes is not None and list(axes) in ([-1], [rank - 1]) and attribute(reduce, "keepdims", 1) == 1


def _text(body: str) -> str:
    return f"""<ir_version: 10, opset_import: ["" : 20]>
g (float[B,4,S,T] x) => (float[B,4,S,T] y)
<int64[1] ax = {{-1}}, int64[1] ax0 = {{2}}, float one = {{1}}, float eps = {{0.001}}> {{
{body}
}}"""


_STABLE = (
    "  m = ReduceMax <keepdims = 1> (x, ax)\n  d = Sub (x, m)\n  e = Exp (d)\n  s = ReduceSum <keepdims = 1> (e, ax)\n"
)
WrittenSoftmax.examples = (
    Example(text=_text(_STABLE + "  y = Div (e, s)"), fires=1, emits={"Softmax": 1}),
    Example(
        text=_text("  e = Exp (x)\n  s = ReduceSum <keepdims = 1> (e, ax)\n  t = Add (s, one)\n  y = Div (e, t)"),
        fires=1,
        emits={"Softmax": 1},
    ),
    Example(
        text=_text("  e = Exp (x)\n  s = ReduceSum <keepdims = 1> (e, ax0)\n  y = Div (e, s)"), because="softmax-axis"
    ),
    Example(text=_text(_STABLE + "  t = Add (s, eps)\n  y = Div (e, t)"), because="softmax-term"),
)
