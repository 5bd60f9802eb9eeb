"""ATT001: attention written by hand, found from its softmax."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .. import canonical
from ..graph import Builder, op_name
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from .between import Between, between
from .conditions import literals
from .frame import Frame, lifted_heads
from .scores import Product, score_product
from .weights import Downward, attends, read_elsewhere, walk_down

__all__ = ["SoftmaxAttention"]

#: Operators below a softmax that leave its weights as they are.
_HANDS_ON = frozenset({"Cast", "Identity", "Dropout", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand"})


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
    ``chunked-scores`` (they are put together from pieces, as sliding chunks are), ``sum-of-products`` (scores
    written as multiply and sum instead of a product), ``softmax-over-queries`` (slot attention), ``score-layout``,
    ``score-factor``, ``mask-fill``, ``softcap-form``, ``weights-changed`` (something other than a guard stands
    between the softmax and the value: talking heads, re-weighting).

    ## Numerics
    ROUNDING: the scale may move from query or key onto the scores. Rows that a finite fill leaves no key may give
    another mean: the named assumption fully-masked-rows, where the proof sees it.

    ## References
    Vaswani et al., Attention Is All You Need, 2017, section 3.2.1.
    """

    code = "ATT001"
    name = "softmax-attention"
    safety = Safety.ROUNDING
    anchors = frozenset({"Softmax"})
    emits = (f"{canonical.DOMAIN}::{canonical.NAME}",)

    def examine(self, node: ir.Node, context: Context) -> Facts:
        around = between(node)
        if around is None:
            raise Declined("no-match", "a softmax that attends to nothing")
        down, product = _ways(node, around)
        query, key = product.node.inputs
        assert query is not None and key is not None
        wanted = "" if product.sink is None else "first" if product.sink_first else "last"
        if wanted != down.sliced:
            raise Declined("sink-form", "a logit is added to the scores or a weight dropped, not both", at=node)
        if product.widened and down.node.outputs[0].dtype == ir.DataType.FLOAT:
            raise Declined("softmax-dtype", "the softmax is wider than its scores and stays so", at=node)
        _forbid(product, down, node)
        return Facts(node, product, down, lifted_heads(query, key, down.node.inputs[1]), read_elsewhere(down))

    def build(self, facts: Facts, g: Builder) -> Replacement:
        value_operand = facts.down.node.inputs[1]
        assert value_operand is not None
        frame = Frame(facts.product, value_operand, facts.heads, g)
        query, key, value = frame.operands()
        mask, bias = frame.masks()
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
            empty_rows="zero" if facts.down.guarded or facts.down.blanked else "as_written",
            origin="softmax",
        )
        output = made[0] if outputs == 2 else made
        old, new = [facts.down.node.outputs[0]], [frame.back(output, facts.down.node.outputs[0])]
        if outputs == 2:
            old.append(facts.down.kept)
            new.append(frame.back(made[1], facts.down.kept))
        return Replacement(
            old=old,
            new=new,
            always=facts.product.assumptions,
            assumptions=("fully-masked-rows",),
            rows_of=facts.softmax,
        )


def _ways(softmax: ir.Node, around: Between) -> tuple[Downward, Product]:
    """Down to the value product and up to the score product."""
    outline = _outline(softmax, around)
    if not attends(softmax):
        if outline is not None:
            raise outline
        by = _by_what(around)
        raise Declined("weights-changed", f"the weights are changed between softmax and value{by}", at=softmax)
    scores = softmax.inputs[0]
    assert scores is not None
    try:
        return walk_down(softmax), score_product(scores)
    except Declined as no:
        raise (outline or no) from no


def _by_what(around: Between) -> str:
    """The first operator below the softmax that does more than hand the weights on, and its line."""
    node = next((n for n in around.down if op_name(n) not in _HANDS_ON), None)
    if node is None:
        return ""
    source = node.metadata_props.get("deployml.source")
    return f", by {node.op_type}" + (f" ({source})" if source else "")


def _outline(softmax: ir.Node, around: Between) -> Declined | None:
    """What the outline of an attention says about why it is not recognised."""
    if around.apart:
        detail = "the scores are distances of queries from keys, no products of the two"
        return Declined("no-score-product", detail, at=softmax)
    if around.summed:
        detail = "scores or weighted values are written as multiply and sum; write them as a matmul or an einsum"
        return Declined("sum-of-products", detail, at=softmax)
    if around.over_keys is False:
        detail = "the softmax runs over the queries of each key, not over the keys of each query"
        return Declined("softmax-over-queries", detail, at=softmax)
    if around.chunked:
        return Declined("chunked-scores", "the scores are put together from pieces, chunk by chunk", at=softmax)
    return None


def _forbid(product: Product, down: Downward, softmax: ir.Node) -> None:
    """Make masks that blank the weights as well forbid their keys altogether: the fill is then of no account.

    Raises:
        Declined: "weights-changed" when weights are set to 0 under a condition that masks no score.
    """
    for condition, keeps in down.blanked:
        wanted = literals(condition, keeps)
        said = [(t, literals(t.value, t.kind == "keep")) for t in product.terms if t.kind in ("keep", "drop")]
        if wanted != frozenset().union(*(each for _, each in said if each <= wanted)):
            raise Declined("weights-changed", "weights are set to 0 that the softmax had counted", at=softmax)
        for term, each in said:
            term.fill = None if each <= wanted else term.fill


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
