"""LAY013: a reduction whose lost axis is put back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_ir as ir

from ..example_text import declines, fires
from ..graph import Builder, attribute, dims, op_name, producer
from ..look import axes_of, no_match, opset, unused_elsewhere
from ..rule import Context, Declined, Replacement, Rule, Safety

__all__ = ["KeptAxis"]

#: Reductions, with the opset that made their axes an input.
_AXES_INPUT: Final = {"ReduceSum": 13, "ReduceMax": 18, "ReduceMin": 18, "ReduceMean": 18, "ReduceLogSumExp": 18}


@dataclass(frozen=True, slots=True)
class _Facts:
    reduce: ir.Node
    source: ir.Value
    output: ir.Value
    axes: tuple[int, ...]
    as_input: bool


class KeptAxis(Rule):
    """A reduction that drops its axes, and an unsqueeze that puts them back.

    ## What it finds
    ``Unsqueeze(ReduceSum(x, a, keepdims=0), a)`` with constant axes, and the same of a maximum, a minimum, a mean
    and a logarithm of summed exponentials.

    ## Why
    ``e / e.sum(-1)[..., None]`` and ``x - x.max(-1).values.unsqueeze(-1)`` are written as often as ``keepdim=True``;
    the rules that know a softmax or a norm then see one form.

    ## Before -> After
    ``ReduceSum(keepdims=0), Unsqueeze`` -> ``ReduceSum(keepdims=1)``

    ## When it declines
    * ``read-elsewhere``: the value without the axis has other readers.

    ## Numerics
    EXACT: no element is computed otherwise.

    ## References
    ONNX operators ReduceSum-13, ReduceMax-18, Unsqueeze-13.
    """

    code: ClassVar[str] = "LAY013"
    name: ClassVar[str] = "kept-axis"
    safety: ClassVar[Safety] = Safety.EXACT
    anchors: ClassVar[frozenset[str]] = frozenset({"Unsqueeze"})
    emits: ClassVar[tuple[str, ...]] = tuple(_AXES_INPUT)

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        """See :class:`KeptAxis`."""
        reduce = producer(node.inputs[0], *_AXES_INPUT)
        if reduce is None or reduce.inputs[0] is None or opset(context) < 13 or attribute(reduce, "keepdims", 1) != 0:
            raise no_match()
        dropped, added, shape = axes_of(reduce), axes_of(node), dims(reduce.inputs[0])
        if not dropped or added is None or shape is None:
            raise no_match("axes or rank unknown")
        axes = sorted(a % len(shape) for a in dropped)
        if axes != sorted(a % len(shape) for a in added):
            raise no_match("other axes")
        if not unused_elsewhere(reduce.outputs[0], node):
            raise Declined("read-elsewhere", "the value without the axis has other readers", at=reduce)
        as_input = opset(context) >= _AXES_INPUT[op_name(reduce)]
        return _Facts(reduce, reduce.inputs[0], node.outputs[0], tuple(axes), as_input)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        """See :class:`KeptAxis`."""
        old, kind = facts.output, op_name(facts.reduce)
        if facts.as_input:
            axes = g.const(np.array(facts.axes, np.int64))
            made = g.op(kind, facts.source, axes, keepdims=1, dtype=old.dtype, shape=old.shape)
        else:
            made = g.op(kind, facts.source, axes=list(facts.axes), keepdims=1, dtype=old.dtype, shape=old.shape)
        return Replacement(old=[old], new=[made])


_ROWS, _AXES = "float[B,4,S,T] x", "int64[1] last = {-1}, int64[1] third = {3}, int64[1] rows = {2}"
KeptAxis.examples = (
    fires(
        _ROWS,
        "float[B,4,S,1] y",
        "s = ReduceSum <keepdims = 0> (x, last) y = Unsqueeze (s, third)",
        constants=_AXES,
        emits={"Unsqueeze": 0, "ReduceSum": 1},
    ),
    fires(
        "float[2,S,8] x",
        "float[2,S,1] y",
        "s = ReduceMax <keepdims = 0, axes = [2]> (x) y = Unsqueeze (s, last)",
        constants=_AXES,
        emits={"Unsqueeze": 0, "ReduceMax": 1},
        opset=17,
    ),
    declines(
        _ROWS,
        "float[B,4,1,S] y",
        "s = ReduceSum <keepdims = 0> (x, last) y = Unsqueeze (s, rows)",
        constants=_AXES,
        because="no-match",
    ),
    declines(
        _ROWS,
        "float[B,4,S,1] y, float[B,4,S] z",
        "s = ReduceSum <keepdims = 0> (x, last) y = Unsqueeze (s, third) z = Neg (s)",
        constants=_AXES,
        because="read-elsewhere",
    ),
)
