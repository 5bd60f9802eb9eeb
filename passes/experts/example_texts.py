"""Writes the ONNX text of a mixture of experts, for the examples of the rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["SILU", "WOVEN", "gathered_text", "grouped_text", "looped_text"]

#: Sizes in the examples: experts, features, inner features.
EXPERTS, HIDDEN, INNER = 3, 4, 2

#: The halves of h, one of them activated by silu.
SILU: Final = """
  gate, value = Split <axis = -1, num_outputs = 2> (h)
  sigmoid = Sigmoid (gate) active = Mul (gate, sigmoid) a = Mul (active, value)"""

#: Every other column is the gate; both are bounded, and the value is moved by one.
WOVEN: Final = """
  gate = Slice (h, zero, far, one, two) value = Slice (h, one, far, one, two)
  below = Min (gate, seven) lower = Max (value, minus_seven) within = Min (lower, seven)
  scaled = Mul (below, alpha) sigmoid = Sigmoid (scaled) active = Mul (below, sigmoid)
  moved = Add (within, plus_one) a = Mul (moved, active)"""

_SORTED: Final = """
  flat = Reshape (experts, minus) count = Shape (flat)
  ids, places = TopK <largest = 0> (flat, count)
  token = Div (places, two) rows = Gather (x, token)
  column = Unsqueeze (ids, one) hit = Equal (column, all) hits = Cast <to = 7> (hit)
  sums = ReduceSum <keepdims = 0> (hits, zero) ends = CumSum (sums, zero)"""

_RESTORED: Final = """
  flat_weights = Reshape (weights, minus) own = Gather (flat_weights, places) factor = Unsqueeze (own, minus)
  weighted = Mul (out, factor)
  size = Squeeze (count) slots = Range (nothing, size, step) none = ConstantOfShape <value = int64[1] {0}> (count)
  at = Unsqueeze (places, minus) back = ScatterND (none, at, slots)
  restored = Gather (weighted, back) each = Reshape (restored, by_token)
  y = ReduceSum <keepdims = 0> (each, one)"""


@dataclass(frozen=True, slots=True)
class _Form:
    """One way to write a mixture: nodes before the first product, each product, and what follows."""

    before: str
    product: str
    ids: str
    after: str


_GROUPED: Final = _Form(
    _SORTED, "{out} = deployml.canonical.GroupedMatMul <{attributes}> ({rows}, {weight}, ends)", "ids", _RESTORED
)
_GATHERED: Final = _Form(
    """
  flat = Reshape (experts, minus)
  apart = Unsqueeze (x, one) wide = Expand (apart, pair) rows = Reshape (wide, by_row)""",
    """{weight}_own = Gather ({weight}, flat) {out}_column = Unsqueeze ({rows}, minus)
  {out}_thin = MatMul ({weight}_own, {out}_column) {out} = Squeeze ({out}_thin, minus)""",
    "flat",
    """
  factor = Reshape (weights, column_shape) weighted = Mul (out, factor) each = Reshape (weighted, by_token)
  y = ReduceSum <keepdims = 0> (each, one)""",
)


def grouped_text(
    *,
    between: str = SILU,
    dtype: str = "float",
    tokens: int | str = "N",
    stored: bool = False,
    bias: bool = False,
    gated: bool = True,
    normed: bool = False,
) -> str:
    """Rows sorted by expert and two grouped products, two experts a token.

    Args:
        between: From h to a.
        dtype: Type of the floats.
        tokens: Their number.
        stored: Weights are constants, as (E, in, out); otherwise they are inputs, as (E, out, in).
        bias: Both products have a bias by expert.
        gated: h has two halves.
        normed: What comes out of each expert is normalised.
    """
    return _text(_GROUPED, between, dtype, tokens, stored=stored, turned=stored, bias=bias, gated=gated, normed=normed)


def gathered_text(
    *,
    between: str = SILU,
    dtype: str = "float",
    tokens: int | str = "N",
    bias: bool = False,
    gated: bool = True,
    normed: bool = False,
) -> str:
    """The same with a constant weight gathered for each row, and batched products."""
    return _text(_GATHERED, between, dtype, tokens, stored=True, turned=False, bias=bias, gated=gated, normed=normed)


def _text(
    form: _Form,
    between: str,
    dtype: str,
    tokens: int | str,
    *,
    stored: bool,
    turned: bool,
    bias: bool,
    gated: bool,
    normed: bool,
) -> str:
    inputs = [f"{dtype}[{tokens},{HIDDEN}] x", f"int64[{tokens},2] experts", f"{dtype}[{tokens},2] weights"]
    constants = _numbers(dtype)
    for name, rows, columns in (("inner", INNER * (1 + gated), HIDDEN), ("outer", HIDDEN, INNER)):
        if stored:
            constants.append(_weight(dtype, name, (EXPERTS, columns, rows) if turned else (EXPERTS, rows, columns)))
        else:
            inputs.append(f"{dtype}[{EXPERTS},{rows},{columns}] {name}")
        if bias:
            constants.append(_weight(dtype, f"{name}_bias", (EXPERTS, rows)))
    attributes = f"groups = {EXPERTS}, transposed = {int(not turned)}"
    first, last = ("h", "out") if not bias else ("plain_h", "plain_out")
    products = [
        form.product.format(out=out, rows=rows, weight=weight, attributes=attributes)
        for out, rows, weight in ((first, "rows", "inner"), (last, "a", "outer"))
    ]
    own = [
        f"{weight}_bias_own = Gather ({weight}_bias, {form.ids}) {out} = Add (plain_{out}, {weight}_bias_own)"
        for weight, out in (("inner", "h"), ("outer", "out"))
        if bias
    ] or ["", ""]
    after = f"\n  normed = LpNormalization (out){form.after.replace('(out', '(normed')}" if normed else form.after
    body = f"{form.before}\n  {products[0]}\n  {own[0]}{between}\n  {products[1]}\n  {own[1]}{after}"
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "deployml.canonical" : 1]>
experts ({", ".join(inputs)}) => ({dtype}[{tokens},{HIDDEN}] y)
<{", ".join(constants)}> {{{body}
}}"""


def _numbers(dtype: str) -> list[str]:
    """Constants that any of the texts reads."""
    vectors = {"zero": (0,), "one": (1,), "two": (2,), "minus": (-1,), "far": (1000,), "by_token": (-1, 2, HIDDEN)}
    vectors |= {"all": tuple(range(EXPERTS)), "pair": (1, 2, 1), "by_row": (-1, HIDDEN), "column_shape": (-1, 1)}
    scalars = {"seven": 7, "minus_seven": -7, "alpha": 1.5, "plus_one": 1, "squared": 2}
    return [
        *(f"int64[{len(v)}] {name} = {{{', '.join(map(str, v))}}}" for name, v in vectors.items()),
        "int64 nothing = {0}",
        "int64 step = {1}",
        *(f"{dtype} {name} = {{{number}}}" for name, number in scalars.items()),
    ]


def _weight(dtype: str, name: str, shape: tuple[int, ...], start: int = 0) -> str:
    """A constant of numbers that differ from each other."""
    count = 1
    for size in shape:
        count *= size
    numbers = ", ".join(f"{(((n + start) * 37) % 101 - 50) / 40:g}" for n in range(count))
    return f"{dtype}[{','.join(map(str, shape))}] {name} = {{{numbers}}}"


def looped_text(
    *, chosen: bool = True, tokens: int | str = "N", activation: str = "", numbers: tuple[int, ...] = (0, 1)
) -> str:
    """A loop over gated experts with matrices of their own.

    Args:
        chosen: Each is given the tokens that chose it; otherwise all, and weighted.
        tokens: Their number.
        activation: Operator in the place of silu.
        numbers: Of the experts.
    """
    inputs = f"float[{tokens},{HIDDEN}] x, int64[{tokens},2] experts, float[{tokens},2] weights"
    constants, body, total = _numbers("float"), "", "zeros"
    for e in numbers:
        constants.append(f"int64 number{e} = {{{e}}}")
        for place, name in enumerate(("gate", "up", "down")):
            shape = (INNER, HIDDEN) if name != "down" else (HIDDEN, INNER)
            constants.append(_weight("float", f"{name}{e}", shape if chosen else shape[::-1], 7 * e + place))
        body += (_CHOSEN if chosen else _ON_ALL).format(
            e=e,
            total=total,
            act=f"a{e} = {activation} (g{e})" if activation else f"s{e} = Sigmoid (g{e}) a{e} = Mul (g{e}, s{e})",
        )
        total = f"total{e}"
    return f"""<ir_version: 10, opset_import: ["" : 20]>
experts ({inputs}) => (float[{tokens},{HIDDEN}] y)
<{", ".join(constants)}> {{
  size = Shape (x) zeros = ConstantOfShape <value = float[1] {{0}}> (size) table = Unsqueeze (weights, minus){body}
  y = Identity ({total})
}}"""


_CHOSEN: Final = """
  hit{e} = Equal (experts, number{e}) turned{e} = Transpose <perm = [1, 0]> (hit{e}) found{e} = NonZero (turned{e})
  pairs{e} = Transpose <perm = [1, 0]> (found{e})
  slot{e}, token{e} = Split <axis = 1, num_outputs = 2> (pairs{e}) rows{e} = GatherND (x, token{e})
  g{e} = Gemm <transB = 1> (rows{e}, gate{e}) {act} u{e} = Gemm <transB = 1> (rows{e}, up{e}) m{e} = Mul (a{e}, u{e})
  o{e} = Gemm <transB = 1> (m{e}, down{e})
  at{e} = Concat <axis = 1> (token{e}, slot{e}) w{e} = GatherND (table, at{e}) p{e} = Mul (o{e}, w{e})
  total{e} = ScatterND <reduction = "add"> ({total}, token{e}, p{e})"""

_ON_ALL: Final = """
  hit{e} = Equal (experts, number{e}) flag{e} = Cast <to = 1> (hit{e}) own{e} = Mul (weights, flag{e})
  w{e} = ReduceSum <keepdims = 1> (own{e}, minus)
  g{e} = MatMul (x, gate{e}) {act} u{e} = MatMul (x, up{e}) m{e} = Mul (a{e}, u{e}) o{e} = MatMul (m{e}, down{e})
  p{e} = Mul (w{e}, o{e}) total{e} = Add ({total}, p{e})"""
