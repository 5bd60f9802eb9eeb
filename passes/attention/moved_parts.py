"""ATT113: query, key and value cut out of one projection in any order become its three parts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..capability import GQA, MHA
from ..graph import Builder, dims, producer
from ..layout.moves import columns_of, moved_from
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .own import OwnAttention

__all__ = ["MovedParts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """The attention node and where its query, key and value come from.

    Attributes:
        node: The lowered attention.
        source: The (B, S, W) tensor all three are cut from.
        columns: Its columns in the order query, key, value; None where that is how they stand.
        product: The MatMul by a constant that makes the tensor, where the columns must change places.
        bias: The constant added to that product.
    """

    node: ir.Node
    source: ir.Value
    columns: npt.NDArray[np.int64] | None
    product: ir.Node | None = None
    bias: ir.Value | None = None


class MovedParts(Rule):
    """Query, key and value taken out of one projection by reshapes, transposes and slices.

    ## What it finds
    A lowered attention over (B, S, N * H) tensors whose query, key and value hold, row by row, the columns of one
    (B, S, W) tensor, each once, however they were cut out: ``reshape(B, S, 3, N, H).permute(2, 0, 3, 1, 4).unbind(0)``
    (timm, DINO, Swin), ``view(B, S, N, 3, H)`` (BLOOM), chunks of heads. What the moves do to the columns is found by
    moving their numbers.

    ## Why
    One Split in place of up to twelve nodes, half of which copy the tensors.

    ## Before -> After
    ``MHA(*moves(x @ W + b))`` -> ``MHA(*Split(x @ W' + b'))``. W' and b' are W and b with their columns in the order
    query, key, value; where they stand in it already, nothing but the moves changes.

    ## When it declines
    ``shared-weights`` (the columns must change places, and the matrix or its product has other readers), otherwise
    there is nothing to find.

    ## Numerics
    ROUNDING: a product may sum differently at other columns.

    ## References
    Vaswani et al., 2017, section 3.2.2.
    """

    code = "ATT113"
    name = "moved-parts"
    safety = Safety.ROUNDING
    anchors = frozenset({MHA, GQA, *OwnAttention.emits})
    emits = ("Split",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        parts = [v for v in node.inputs[:3] if v is not None]
        if len(parts) != 3 or any(len(dims(v) or ()) != 3 for v in parts):
            raise Declined("no-match", "query, key and value are not three (B, S, N * H) tensors")
        split = producer(parts[0], "Split")
        if split is not None and [id(v) for v in split.outputs] == [id(v) for v in parts]:
            raise Declined("no-match", "they are the parts of one tensor already")
        source, columns = _common(parts)
        if bool((columns == np.arange(len(columns))).all()):
            return Facts(node, source, None)
        product, bias = _projection(source)
        _alone(node, source, parts, product, bias)
        return Facts(node, source, columns, product, bias)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        old = list(facts.node.inputs[:3])
        wide = facts.source if facts.columns is None else _in_order(facts, g)
        widths = np.array([dims(v)[-1] for v in old], np.int64)  # type: ignore[index]
        made = g.op("Split", wide, g.const(widths), outputs=3, axis=-1)
        for value, part in zip(made, old, strict=True):
            assert part is not None
            value.type, value.shape = part.type, part.shape
        return Replacement(old=[v for v in old if v is not None], new=list(made))


def _common(parts: list[ir.Value]) -> tuple[ir.Value, npt.NDArray[np.int64]]:
    """The nearest tensor that all parts are columns of, and these columns, one after the other."""
    width = sum(w for v in parts if isinstance(w := (dims(v) or (None,))[-1], int))
    first, *others = [moved_from(v) for v in parts]
    upstream = [{id(v) for v in chain} for chain in others]
    for source in first:
        if not all(id(source) in seen for seen in upstream) or (dims(source) or ())[2:] != (width,):
            continue
        columns = [columns_of(v, source) for v in parts]
        found = [c for c in columns if c is not None]
        if len(found) == 3 and len(np.unique(joined := np.concatenate(found))) == len(joined) == width:
            return source, joined
    raise Declined("no-match", "query, key and value do not divide one tensor among them")


def _projection(source: ir.Value) -> tuple[ir.Node, ir.Value | None]:
    """The MatMul by a constant matrix behind ``source``, and the constant vector added to it."""
    add = producer(source, "Add")
    width = (dims(source) or (None,))[-1]
    for tensor, bias in [(source, None)] if add is None else [tuple(add.inputs), tuple(reversed(add.inputs))]:
        product = producer(tensor, "MatMul")
        if product is None or not _constant(product.inputs[1], 2) or (add is not None and not _constant(bias, 1)):
            continue
        if bias is None or dims(bias) == (width,):
            return product, bias
    raise Declined("no-match", "the tensor is no product by a constant matrix")


def _constant(value: ir.Value | None, rank: int) -> bool:
    known = value is not None and value.const_value is not None and not value.is_graph_input()
    return known and len(dims(value) or ()) == rank


def _alone(node: ir.Node, source: ir.Value, parts: list[ir.Value], product: ir.Node, bias: ir.Value | None) -> None:
    """Refuse when anything but this attention reads what changes its order."""
    moves = {v.producer() for part in parts for v in moved_from(part)[: _place(part, source)]}
    inside = {id(n) for n in (*moves, node, product, source.producer())}
    changing = [source, product.outputs[0], *(v for n in moves if n is not None for v in n.outputs)]
    for value in changing:
        if value.is_graph_output() or any(id(use.node) not in inside for use in value.uses()):
            raise Declined("shared-weights", "something else reads the projection, whose order changes", at=node)
    weight = product.inputs[1]
    if weight is None or any(len(v.uses()) != 1 for v in (weight, bias) if v is not None):
        raise Declined("shared-weights", "the projection's matrix or bias has other readers", at=node)


def _place(part: ir.Value, source: ir.Value) -> int:
    return next(i for i, value in enumerate(moved_from(part)) if value is source)


def _in_order(facts: Facts, g: Builder) -> ir.Value:
    """The projection with its columns in the order query, key, value."""
    product, bias = facts.product, facts.bias
    assert product is not None and facts.columns is not None
    rows, weight = product.inputs
    columns = g.const(facts.columns)
    turned = g.op("Gather", weight, columns, axis=1, dtype=weight.dtype, shape=weight.shape)  # type: ignore[union-attr]
    wide = g.op("MatMul", rows, turned, dtype=facts.source.dtype, shape=facts.source.shape)
    if bias is not None:
        vector = g.op("Gather", bias, columns, axis=0, dtype=bias.dtype, shape=bias.shape)
        wide = g.op("Add", wide, vector, dtype=facts.source.dtype, shape=facts.source.shape)
    return wide


def _text(body: str, *, more: str = "") -> str:
    weight, bias = (", ".join(f"{(i * k) % 11 / 10:.1f}" for i in range(n)) for n, k in ((48, 7), (12, 5)))
    return f"""<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>
g (float[B,S,4] x) => ({more}float[B,S,4] y)
<float[4,12] w = {{{weight}}}, float[12] bias = {{{bias}}}, int64[5] thrice = {{0, 0, 3, 2, 2}},
 int64[5] inner = {{0, 0, 2, 3, 2}}, int64[3] flat = {{0, 0, 4}}, int64 zero = {{0}}, int64 one = {{1}},
 int64 two = {{2}},
 float[B,S,12] wide, float[B,S,4] q, float[B,S,4] k, float[B,S,4] v> {{
  product = MatMul (x, w)
  wide = Add (product, bias)
{body}
  y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v)
}}"""


def _cut(shape: str, axis: int) -> str:
    numbers = (("q", "zero"), ("k", "one"), ("v", "two"))
    lines = [f"  cut = Reshape (wide, {shape})"]
    for name, number in numbers:
        lines.append(f"  {name}c = Gather <axis = {axis}> (cut, {number})\n  {name} = Reshape ({name}c, flat)")
    return "\n".join(lines)


MovedParts.examples = (
    Example(text=_text(_cut("thrice", 2)), fires=1, emits={"Split": 1}),
    Example(text=_text(_cut("inner", 3)), fires=1, emits={"Split": 1}),
    Example(
        text=_text(_cut("inner", 3) + "\n  also = Neg (cut)", more="float[B,S,2,3,2] also, "), because="shared-weights"
    ),
    Example(text=_text(_cut("thrice", 2).replace("(cut, one)", "(cut, zero)")), because="no-match"),
    Example(text=_text("  q, k, v = Split <axis = -1, num_outputs = 3> (wide)"), because="no-match"),
)
