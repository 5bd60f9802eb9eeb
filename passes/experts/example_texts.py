"""Writes the ONNX text of a mixture of experts, for the examples of the rules."""

from __future__ import annotations

from typing import Final

__all__ = ["SILU", "WOVEN", "grouped_text"]

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
    inputs = [f"{dtype}[{tokens},{HIDDEN}] x", f"int64[{tokens},2] experts", f"{dtype}[{tokens},2] weights"]
    shapes = {"inner": (EXPERTS, INNER * (1 + gated), HIDDEN), "outer": (EXPERTS, HIDDEN, INNER)}
    constants = [
        "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] minus = {-1}, int64[1] far = {1000}",
        f"int64 nothing = {{0}}, int64 step = {{1}}, int64[3] by_token = {{-1, 2, {HIDDEN}}}",
        f"int64[{EXPERTS}] all = {{{', '.join(map(str, range(EXPERTS)))}}}",
        f"{dtype} seven = {{7}}, {dtype} minus_seven = {{-7}}, {dtype} alpha = {{1.5}}, {dtype} plus_one = {{1}}",
        f"{dtype} squared = {{2}}",
    ]
    for name, (count, rows, columns) in shapes.items():
        if stored:
            constants.append(_weight(dtype, name, (count, columns, rows)))
        else:
            inputs.append(f"{dtype}[{count},{rows},{columns}] {name}")
        if bias:
            constants.append(_weight(dtype, f"{name}_bias", (count, rows)))
    layout = f"<groups = {EXPERTS}, transposed = {int(not stored)}>"
    first, last = ("h", "out") if not bias else ("plain_h", "plain_out")
    body = f"""{_SORTED}
  {first} = deployml.canonical.GroupedMatMul {layout} (rows, inner, ends)
  {"inner_own = Gather (inner_bias, ids) h = Add (plain_h, inner_own)" if bias else ""}{between}
  {last} = deployml.canonical.GroupedMatMul {layout} (a, outer, ends)
  {"outer_own = Gather (outer_bias, ids) out = Add (plain_out, outer_own)" if bias else ""}
  {"normed = LpNormalization (out)" if normed else ""}{_RESTORED.replace("(out", "(normed") if normed else _RESTORED}"""
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1, "deployml.canonical" : 1]>
experts ({", ".join(inputs)}) => ({dtype}[{tokens},{HIDDEN}] y)
<{", ".join(constants)}> {{ {body}
}}"""


def _weight(dtype: str, name: str, shape: tuple[int, ...]) -> str:
    """A constant of numbers that differ from each other."""
    count = 1
    for size in shape:
        count *= size
    numbers = ", ".join(f"{((n * 37) % 101 - 50) / 40:g}" for n in range(count))
    return f"{dtype}[{','.join(map(str, shape))}] {name} = {{{numbers}}}"
