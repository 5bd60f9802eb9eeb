"""ATT003: a softmax written as exponential over its sum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..graph import Builder, attribute, constant, dims, producer, scalar
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .between import between
from .masked_sum import Core, core_of, with_mask
from .scores import score_product

__all__ = ["WrittenSoftmax"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What a quotient says.

    Attributes:
        node: The quotient.
        logits: What the exponentials are of.
        extra: The logit that an extra term of the denominator stands for; None for none.
        raw: Whether no maximum is taken off: a row of finite masks then sums to 0 and gives NaN.
        core: The exponentials and the mask on them; None for the exponential of a logarithm.
        held: Whether a small number keeps the sum of a row without keys from being 0: its weights are 0, not NaN.
    """

    node: ir.Node
    logits: ir.Value
    extra: ir.Value | float | None
    raw: bool = False
    core: Core | None = None
    held: bool = False


class WrittenSoftmax(Rule):
    """exp(x) / sum(exp(x)) over the last axis, with or without the maximum taken off first.

    ## What it finds
    Div of an Exp by the ReduceSum of the same Exp over the last axis (keepdims), or Mul by its Reciprocal. From
    the exponent anything may be taken off that is one number a row: its maximum, clamped or not. Exp of
    LogSoftmax, or of x less its ReduceLogSumExp, is the same. An epsilon below the rounding of the sum is
    dropped. A denominator with one more term is a softmax with one more logit: ``1 + sum(exp(x))`` and
    ``exp(-m) + sum(exp(x - m))`` one of 0 (softmax-off-by-one), ``c + sum(exp(x))`` one of ``log(c)``,
    ``exp(s - m) + sum(exp(x - m))`` one of ``s`` (a sink).

    Scores' exponentials, or their softmax, that a mask sets to 0 before they are divided by their sum are a softmax
    under that mask; a small number beside the sum makes rows without keys 0.

    ## Why
    Attention is recognised from its softmax, however that was written.

    ## Before -> After
    ``Exp(x - m) / ReduceSum(Exp(x - m))`` -> ``Softmax(x)``; with the extra term
    ``Slice(Softmax(Concat(x, 0)))``; with a mask ``Softmax(Where(m, x, -inf))``, with a factor of at least 0
    ``Softmax(x + Log(m))``.

    ## When it declines
    ``softmax-axis`` when the sum is not over the last axis alone, ``softmax-term`` when something unknown is
    added to the sum (an epsilon beside a maximum, say: it is no fixed logit).

    ## Numerics
    ROUNDING. Without the maximum the source overflows where the softmax does not, and gives NaN in rows that a
    finite mask empties: the named assumption fully-masked-rows. A number of 1e-8 or less beside a sum of masked
    weights is dropped: the named assumption small-divisor.

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
        weights, total = _quotient(node)
        core = core_of(weights)
        if core is None or total is None:
            raise Declined("no-match", "no exponential over a sum")
        reduce, term, least = _sum_of(total, weights)
        if reduce is None:
            raise Declined("no-match", "no exponential over its own sum")
        if not _over_last(reduce):
            raise Declined("softmax-axis", "the sum is not over the last axis alone", at=reduce)
        logits, taken = core.logits, None
        if core.node.op_type == "Exp":
            logits, taken = _per_row(core.logits)
        if not core.bare and between(core.node if core.node.op_type == "Softmax" else node) is None:
            raise Declined("no-match", "no scores are under the mask")
        maximum = core.node.op_type == "Softmax" or (taken is not None and _is_maximum(taken, logits))
        number = 0.0 if term is None else scalar(term)
        small = number is not None and 0 <= number <= (_NOTHING if core.mask is None else _LOST)
        if not small and (least or (maximum and not core.bare)):
            raise Declined("softmax-term", "what is beside the sum of the weights is no small number", at=node)
        dropped = small and (number == 0 or least or maximum)
        extra = None if dropped or term is None else _logit(term, taken, node)
        held = dropped and number != 0 and (core.mask is not None or not maximum)
        return Facts(node, logits, extra, extra is None and not maximum, core, held)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = facts.node.outputs[0]
        logits = facts.logits if facts.core is None else with_mask(facts.logits, facts.core, g)
        if facts.extra is None:
            made = g.op("Softmax", logits, axis=-1, dtype=old.dtype, shape=old.shape)
            always = ("fully-masked-rows",) if facts.raw or (facts.held and _masked(facts.logits)) else ()
            if facts.held:
                empty = g.op("IsNaN", made, dtype=ir.DataType.BOOL, shape=old.shape)
                made = g.op("Where", empty, g.scalar(0.0, like=old), made, dtype=old.dtype, shape=old.shape)
                always += ("small-divisor",)
            return Replacement(old=[old], new=[made], always=always)
        rank = len(dims(old) or ())
        axis = g.const(np.array([-1], np.int64))
        lead = g.op("Shape", logits, start=0, end=rank - 1, dtype=ir.DataType.INT64)
        size = g.op("Concat", lead, g.const(np.array([1], np.int64)), axis=0, dtype=ir.DataType.INT64)
        shape = list(old.shape) if old.shape is not None else [None] * rank
        extra = facts.extra if isinstance(facts.extra, ir.Value) else g.scalar(facts.extra, like=old)
        column = g.op("Expand", extra, size, dtype=old.dtype, shape=[*shape[:-1], 1])
        wide = g.op("Concat", logits, column, axis=-1, dtype=old.dtype, shape=[*shape[:-1], None])
        soft = g.op("Softmax", wide, axis=-1, dtype=old.dtype, shape=wide.shape)
        zero, end = g.const(np.array([0], np.int64)), g.const(np.array([-1], np.int64))
        return Replacement(old=[old], new=[g.op("Slice", soft, zero, end, axis, dtype=old.dtype, shape=old.shape)])


#: Beside a sum of at least 1, as one of exponentials below their maximum is, this is lost in rounding.
_NOTHING = 1.2e-7
#: Beside a sum of the weights that a mask leaves, which may be small itself, this is lost under a named assumption.
_LOST = 1e-8


def _logarithm(node: ir.Node) -> Facts:
    """exp(log_softmax(x)) and exp(x - logsumexp(x)) over the last axis are softmax(x)."""
    log = producer(node.inputs[0], "LogSoftmax")
    rank = len(dims(node.outputs[0]) or ())
    if log is not None and log.inputs[0] is not None and attribute(log, "axis", -1) in (-1, rank - 1):
        return Facts(node, log.inputs[0], None)
    sub = producer(node.inputs[0], "Sub")
    total = None if sub is None else producer(sub.inputs[1], "ReduceLogSumExp")
    if sub is None or total is None or sub.inputs[0] is None or total.inputs[0] is not sub.inputs[0]:
        raise Declined("no-match", "no exponential of a logarithmic softmax")
    if not _over_last(total):
        raise Declined("softmax-axis", "the sum is not over the last axis alone", at=total)
    return Facts(node, sub.inputs[0], None)


def _masked(scores: ir.Value) -> bool:
    """Whether scores may be minus infinity before their exponentials are masked: rows without a number are no zeros."""
    try:
        return bool(score_product(scores).terms)
    except Declined:
        return True


def _quotient(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    left, right = node.inputs
    if node.op_type == "Div":
        return left, right
    for first, second in ((left, right), (right, left)):
        reciprocal = producer(second, "Reciprocal")
        if reciprocal is not None:
            return first, reciprocal.inputs[0]
    return None, None


def _sum_of(total: ir.Value, weights: ir.Value | None) -> tuple[ir.Node | None, ir.Value | None, bool]:
    """The sum of some weights, the one term beside it, and whether that is its least value instead of an addend."""
    reduce = producer(total, "ReduceSum")
    if reduce is not None:
        return (reduce, None, False) if reduce.inputs[0] is weights else (None, None, False)
    beside = producer(total, "Add", "Max", "Clip")
    if beside is None or len([v for v in beside.inputs if v is not None]) != 2:
        return None, None, False
    for part, other in ((0, 1), (1, 0)):
        reduce = producer(beside.inputs[part], "ReduceSum")
        if reduce is not None and reduce.inputs[0] is weights:
            return reduce, beside.inputs[other], beside.op_type != "Add"
    return None, None, False


def _logit(term: ir.Value, taken: ir.Value | None, node: ir.Node) -> ir.Value | float:
    """The logit whose exponential, less what was taken off the others, is the extra term.

    Raises:
        Declined: "softmax-term" when there is none that is fixed.
    """
    number = scalar(term)
    if taken is None and number is not None and number > 0:
        return float(np.log(number))
    exponent = None if (power := producer(term, "Exp")) is None else power.inputs[0]
    if taken is None and exponent is not None and _one_column(exponent):
        return exponent
    negative, difference = producer(exponent, "Neg"), producer(exponent, "Sub")
    if taken is not None and negative is not None and negative.inputs[0] is taken:
        return 0.0
    if taken is not None and difference is not None and difference.inputs[1] is taken:
        logit = difference.inputs[0]
        if logit is not None and scalar(logit) is not None:
            return float(scalar(logit) or 0.0)
        if logit is not None and _one_column(logit):
            return logit
    raise Declined("softmax-term", "what is added to the sum is not the exponential of a fixed logit", at=node)


def _per_row(value: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """The logits and what is taken off them: a softmax is the same without a number that is one for the row."""
    sub = producer(value, "Sub")
    if sub is None or sub.inputs[0] is None or sub.inputs[1] is None or not _one_column(sub.inputs[1]):
        return value, None
    if len(dims(sub.inputs[0]) or ()) != len(dims(value) or ()):
        return value, None
    return sub.inputs[0], sub.inputs[1]


def _one_column(value: ir.Value) -> bool:
    shape = dims(value)
    return shape is not None and (not shape or shape[-1] == 1)


def _is_maximum(taken: ir.Value, logits: ir.Value) -> bool:
    reduce = producer(taken, "ReduceMax")
    return reduce is not None and reduce.inputs[0] is logits and _over_last(reduce)


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
<int64[1] ax = {{-1}}, int64[1] ax0 = {{2}}, float one = {{1}}, float zero = {{0}}, float eps = {{0.001}}> {{
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
        text=_text(
            "  m = ReduceMax <keepdims = 1> (x, ax)\n  c = Clip (m, zero)\n  d = Sub (x, c)\n  e = Exp (d)\n"
            "  s = ReduceSum <keepdims = 1> (e, ax)\n  n = Neg (c)\n  o = Exp (n)\n  t = Add (s, o)\n"
            "  y = Div (e, t)"
        ),
        fires=1,
        emits={"Softmax": 1},
    ),
    Example(
        text=_text("  e = Exp (x)\n  s = ReduceSum <keepdims = 1> (e, ax0)\n  y = Div (e, s)"), because="softmax-axis"
    ),
    Example(text=_text(_STABLE + "  t = Add (s, eps)\n  y = Div (e, t)"), because="softmax-term"),
)
