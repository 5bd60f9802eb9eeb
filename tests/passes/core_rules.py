"""Rules that are wrong on purpose, each in one way, and canonical calls in graphs that compute their masks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from deployml.passes import canonical
from deployml.passes.graph import Builder
from deployml.passes.rule import Context, Replacement, Rule, Safety

__all__ = ["WRONG", "WrongRule", "masked_call", "rebuilt"]

OP = f"{canonical.DOMAIN}::{canonical.NAME}"


def rebuilt(node: ir.Node, g: Builder, inputs: dict[int, ir.Value | None] | None = None, **changes: Any) -> Replacement:
    """The same call under a new name, with some inputs and attributes changed."""
    given = [(inputs or {}).get(n, v) for n, v in enumerate(node.inputs)]
    attributes = {a.name: a.value for a in node.attributes.values()} | changes
    made = g.op(OP, *given, outputs=len(node.outputs), dtype=node.inputs[0].dtype, **attributes)
    return Replacement(old=list(node.outputs), new=[made] if len(node.outputs) == 1 else list(made))


def _around(change: Callable[[Builder, ir.Value], ir.Value]) -> Callable[[ir.Node, Builder], Replacement]:
    def build(node: ir.Node, g: Builder) -> Replacement:
        made = rebuilt(node, g)
        return Replacement(old=made.old, new=[change(g, made.new[0])])

    return build


def _permuted_heads(node: ir.Node, g: Builder) -> Replacement:
    order = g.const(np.array([1, 0, 2, 3], np.int64))
    return rebuilt(
        node,
        g,
        {
            0: g.op(
                "Gather",
                node.inputs[0],
                order,
                axis=1,
                dtype=node.inputs[0].dtype,
                shape=node.inputs[0].shape,
            )
        },
    )


def _fewer_keys(node: ir.Node, g: Builder) -> Replacement:
    cut = [g.const(np.array([n], np.int64)) for n in (0, 5, 2)]
    key, value = (g.op("Slice", v, *cut) for v in node.inputs[1:3])
    return rebuilt(node, g, {1: key, 2: value})


def _one_batch(node: ir.Node, g: Builder) -> Replacement:
    first = g.op("Slice", node.inputs[0], *[g.const(np.array([n], np.int64)) for n in (0, 1, 0)])
    return rebuilt(node, g, {0: g.op("Expand", first, g.op("Shape", node.inputs[0]))})


def _zeros(g: Builder, value: ir.Value) -> ir.Value:
    return g.op("Mul", value, g.scalar(0.0, like=value))


def _not_a_number(g: Builder, value: ir.Value) -> ir.Value:
    return g.op("Div", _zeros(g, value), _zeros(g, value))


WRONG: dict[str, Callable[[ir.Node, Builder], Replacement]] = {
    "scale": lambda n, g: rebuilt(n, g, scale=canonical.read(n).scale * 1.1),
    "no-mask": lambda n, g: rebuilt(n, g, {3: None}),
    "no-bias": lambda n, g: rebuilt(n, g, {4: None}),
    "no-sink": lambda n, g: rebuilt(n, g, {5: None}),
    "no-softcap": lambda n, g: rebuilt(n, g, softcap=0.0),
    "not-causal": lambda n, g: rebuilt(n, g, causal="none"),
    "upper-left": lambda n, g: rebuilt(n, g, causal="upper_left"),
    "lower-right": lambda n, g: rebuilt(n, g, causal="lower_right"),
    "heads-permuted": _permuted_heads,
    "key-is-query": lambda n, g: rebuilt(n, g, {1: n.inputs[0]}),
    "key-for-value": lambda n, g: rebuilt(n, g, {2: n.inputs[1]}),
    "fewer-keys": _fewer_keys,
    "one-batch": _one_batch,
    "dtype": _around(lambda g, v: g.op("Cast", v, to=ir.DataType.DOUBLE, dtype=ir.DataType.DOUBLE)),
    "half": _around(lambda g, v: g.op("Cast", g.op("Cast", v, to=10, dtype=ir.DataType.FLOAT16), to=1, dtype=v.dtype)),
    "shape": _around(lambda g, v: g.op("Transpose", v, perm=[0, 1, 3, 2])),
    "rank": _around(lambda g, v: g.op("Unsqueeze", v, g.const(np.array([0], np.int64)))),
    "zeros": _around(_zeros),
    "nan": _around(_not_a_number),
    "does-not-load": _around(lambda g, v: g.op("no.such.domain::Thing", v)),
}


@dataclass(frozen=True)
class _Facts:
    node: ir.Node


class WrongRule(Rule):
    """Rewrites a canonical call into something else."""

    code = "ZZZ001"
    name = "wrong-rule"
    safety = Safety.ROUNDING
    anchors = frozenset({OP})
    emits = (OP,)

    def __init__(
        self,
        change: Callable[[ir.Node, Builder], Replacement],
        safety: Safety = Safety.ROUNDING,
        assume: bool = False,
    ) -> None:
        self.change = change
        self.safety = safety  # type: ignore[misc]
        self.assume = assume

    def examine(self, node: ir.Node, context: Context) -> _Facts:
        return _Facts(node)

    def build(self, facts: _Facts, g: Builder) -> Replacement:
        made = self.change(facts.node, g)
        if not self.assume:
            return made
        return Replacement(old=made.old, new=made.new, assumptions=("fully-masked-rows",), rows_of=facts.node)


_RANGES = """
  s_shape = Shape <start = 2, end = 3> (q)
  s_len = Squeeze (s_shape)
  t_shape = Shape <start = 2, end = 3> (k)
  t_len = Squeeze (t_shape)
  row = Range (zero, s_len, one)
  column = Range (zero, t_len, one)
  i = Unsqueeze (row, last)
  d = Sub (i, column)"""

#: Name to (extra inputs, statements that make "mask" or "bias").
_MASKS = {
    "padding": ("int64[B,T] am", "kept = Cast <to = 9> (am)\n  mask = Unsqueeze (kept, middle)"),
    "lengths": ("int64[B] len", _RANGES + "\n  l1 = Unsqueeze (len, three)\n  mask = Less (column, l1)"),
    "segments": (
        "int64[B,S] id",
        "r = Unsqueeze (id, rows)\n  c = Unsqueeze (id, middle)\n  mask = Equal (r, c)",
    ),
    "window": ("", _RANGES + "\n  a = Abs (d)\n  mask = Less (a, reach)"),
    "causal": ("", _RANGES + "\n  mask = GreaterOrEqual (d, zero)"),
    "input": ("bool[B,1,S,T] given", "mask = Identity (given)"),
    "bias": ("float[B,1,S,T] given", "bias = Identity (given)"),
    "bias-of-heads-and-keys": ("float[1,4,1,T] given", "bias = Identity (given)"),
    "low-bias": (
        "int64[B,T] am",
        "kept = Cast <to = 9> (am)\n  m = Unsqueeze (kept, middle)\n  bias = Where (m, nought, low)",
    ),
    "distance-bias": ("", _RANGES + "\n  f = Cast <to = 1> (d)\n  bias = Mul (f, slopes)"),
}


def masked_call(kind: str, *, reach: int = 3, low: float = -1e9, empty_rows: str = "as_written") -> str:
    """ONNX text of a call whose mask or bias the graph computes from its inputs."""
    extra, body = _MASKS[kind]
    keys = "S" if kind in ("segments", "causal", "window") else "T"
    inputs = [
        "float[B,4,S,16] q",
        f"float[B,4,{keys},16] k",
        f"float[B,4,{keys},16] v",
        *[extra] * bool(extra),
    ]
    carried = ", , bias" if "bias" in kind else ", mask"
    attributes = f'scale = 0.25, causal = "none", empty_rows = "{empty_rows}"'
    return f"""<ir_version: 10, opset_import: ["" : 20, "{canonical.DOMAIN}" : 1]>
call ({", ".join(inputs)}) => (float[B,4,S,16] y)
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{1}}, int64[2] middle = {{1,2}}, int64[2] rows = {{1,3}},
 int64[3] three = {{1,2,3}}, int64 reach = {{{reach}}}, float nought = {{0}}, float low = {{{low}}},
 float[4,1,1] slopes = {{-0.5,-0.25,-0.125,-0.0625}}> {{
  {body}
  [site] y = {canonical.DOMAIN}.Attention <{attributes}> (q, k, v{carried})
}}"""
