"""ATT114: attention over tensors of (B, N, S, H), where they come and go in that order."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx_ir as ir

from ...custom_ops import DOMAIN
from ...custom_ops.flash_attention import ATTRIBUTES, Attributes, Signature
from ..capability import STANDARD
from ..graph import Builder, attribute, dims, op_name, producer
from ..look import sole_reader
from ..rule import Context, Declined, Example, Replacement, Rule, Safety
from ..symbols import same_dim
from .own import OWN, OwnAttention

__all__ = ["HeadsFirst"]

_FOLD = [0, 2, 1, 3]


@dataclass(frozen=True, slots=True)
class Facts:
    """The attention node, query, key and value with their heads apart, and the result with its heads apart again.

    Attributes:
        node: The attention.
        parts: Query, key and value as (B, N, S, H).
        output: What the Transpose behind the node gives; None where its (B, S, N * H) result is what is wanted.
        heads: Query heads.
        value_size: Size of a value head.
    """

    node: ir.Node
    parts: tuple[ir.Value, ...]
    output: ir.Value | None
    heads: int
    value_size: int


class HeadsFirst(Rule):
    """A lowered attention whose query, key and value are all turned and folded right before it.

    ## What it finds
    ``deployml::FlashAttention`` or ``ai.onnx::Attention`` over (B, S, N * H) tensors, each of query, key and value the
    Reshape of a Transpose of a (B, N, S, H) one: their heads stood first in the model and nothing took the Transposes
    that the lowering wrote.

    ## Why
    Both operators read (B, N, S, H) tensors as they lie. Three copies and up to eight nodes fewer.

    ## Before -> After
    ``FlashAttention(fold(q), fold(k), fold(v))`` -> ``FlashAttention_bnsh(q, k, v)``; the result is folded where the
    model goes on with (B, S, N * H), and is left as it is where that was undone.

    ## When it declines
    ``heads-folded``: query, key or value is made as (B, S, N * H), or its folded form has other readers.

    ## Numerics
    EXACT: the same numbers in the same order.

    ## References
    Dao, FlashAttention-2, 2023 (both layouts of its implementation); ONNX operators, ai.onnx.Attention-23.
    """

    code = "ATT114"
    name = "heads-first"
    safety = Safety.EXACT
    anchors = frozenset({STANDARD, *OwnAttention.emits})
    emits = (STANDARD, *(name.replace(OWN, f"{OWN}_bnsh") for name in OwnAttention.emits))

    def examine(self, node: ir.Node, context: Context) -> Facts:
        if op_name(node) == STANDARD and (len(node.outputs) > 1 or any(v is not None for v in node.inputs[4:])):
            raise Declined("no-match", "keys of a past come in, or more than the result goes out")
        heads = _heads(node)
        found = [_apart(v, count) for v, count in zip(node.inputs[:3], heads, strict=True)]
        parts = tuple(part for part in found if part is not None)
        if not parts:
            raise Declined("no-match", "no heads are folded for the attention")
        if len(parts) < 3:
            raise Declined("heads-folded", "not all of query, key and value stand with their heads first", at=node)
        size = parts[2].shape[3]  # type: ignore[index]
        assert isinstance(size, int)
        return Facts(node, parts, _turned_back(node, heads[0], size), heads[0], size)

    def build(self, facts: Facts, g: Builder) -> Replacement:
        node, query = facts.node, facts.parts[0]
        assert query.shape is not None
        batch, _, rows, _ = query.shape
        wide = [batch, facts.heads, rows, facts.value_size]
        if op_name(node) == STANDARD:
            given = {a.name: a.value for a in node.attributes.values() if not a.name.endswith("num_heads")}
            name = STANDARD
        else:
            given = asdict(Attributes(**{name: attribute(node, name) for name in ATTRIBUTES}))
            name = f"{DOMAIN}::{replace(Signature.of(node.op_type), layout='bnsh').op_type}"
        dtype = node.outputs[0].dtype
        made = g.op(name, *facts.parts, *node.inputs[3:], outputs=len(node.outputs), dtype=dtype, shape=wide, **given)
        g.keep_name(node)
        output, *weights = made if len(node.outputs) > 1 else (made,)
        for value, old in zip(weights, node.outputs[1:], strict=True):
            value.dtype, value.shape = old.dtype, old.shape
        old = facts.output
        if old is None:
            old = node.outputs[0]
            turned = g.op("Transpose", output, perm=_FOLD, dtype=dtype, shape=[wide[i] for i in _FOLD])
            folded = g.const(np.array([0, 0, facts.heads * facts.value_size], np.int64))
            output = g.op("Reshape", turned, folded, dtype=dtype, shape=old.shape)
        return Replacement(old=[old, *node.outputs[1:]], new=[output, *weights])


def _heads(node: ir.Node) -> tuple[int, int, int]:
    """Heads of query, key and value; 0 where the node does not say."""
    query, key = ("q_num_heads", "kv_num_heads") if op_name(node) == STANDARD else ("num_heads", "kv_heads")
    heads, kv_heads = int(attribute(node, query, 0)), int(attribute(node, key, 0))
    return heads, kv_heads, kv_heads


def _apart(value: ir.Value | None, heads: int) -> ir.Value | None:
    """The (B, N, S, H) tensor that was turned and folded to a value which nothing else reads; None for any other."""
    fold = producer(value, "Reshape")
    if value is None or fold is None or len(value.uses()) != 1 or value.is_graph_output():
        return None
    turn = producer(fold.inputs[0], "Transpose")
    source = None if turn is None else turn.inputs[0]
    if turn is None or source is None or list(attribute(turn, "perm", ())) != _FOLD or len(turn.outputs[0].uses()) != 1:
        return None
    return source if _folds(source, value, heads) else None


def _folds(apart: ir.Value, folded: ir.Value, heads: int) -> bool:
    """Whether (B, N, S, H) and (B, S, N * H) are provably one tensor, its axes in two orders."""
    wide, flat = apart.shape, folded.shape
    if wide is None or flat is None or len(wide) != 4 or len(flat) != 3:
        return False
    known = wide[1] == heads > 0 and isinstance(wide[3], int) and flat[2] == heads * wide[3]
    return known and same_dim(wide[0], flat[0]) and same_dim(wide[2], flat[1])


def _turned_back(node: ir.Node, heads: int, size: int) -> ir.Value | None:
    """The (B, N, S, Hv) value that the result is split and turned to, when that is all that reads it."""
    split = sole_reader(node.outputs[0], "Reshape")
    turn = None if split is None else sole_reader(split.outputs[0], "Transpose")
    if split is None or turn is None or split.inputs[0] is not node.outputs[0]:
        return None
    if list(attribute(turn, "perm", ())) != _FOLD or (dims(split.outputs[0]) or ())[2:] != (heads, size):
        return None
    return turn.outputs[0] if _folds(turn.outputs[0], node.outputs[0], heads) else None


def _text(body: str, *, op: str = "deployml.FlashAttention", out: str = "float[B,4,S,16] y") -> str:
    options = {
        "deployml.FlashAttention": "num_heads = 4, kv_heads = 2, scale = 0.0, causal = 0, lower_right = 0, "
        "window_left = -1, window_right = -1, softcap = 0.0",
        "Attention": "q_num_heads = 4, kv_num_heads = 2",
    }[op]
    return f"""<ir_version: 10, opset_import: ["" : 23, "deployml" : 1]>
g (float[B,4,S,16] q, float[B,2,T,16] k, float[B,2,T,16] v, float[B,T,32] flat) => ({out})
<int64[3] wide = {{0, 0, 64}}, int64[3] narrow = {{0, 0, 32}}, int64[4] apart = {{0, 0, 4, 16}},
 float[B,S,4,16] qt, float[B,S,64] qf, float[B,T,2,16] kt, float[B,T,32] kf, float[B,T,2,16] vt, float[B,T,32] vf,
 float[B,S,64] o, float[B,S,4,16] os> {{
  qt = Transpose <perm = [0, 2, 1, 3]> (q)
  qf = Reshape (qt, wide)
  kt = Transpose <perm = [0, 2, 1, 3]> (k)
  kf = Reshape (kt, narrow)
{body.replace("ATTEND", f"{op} <{options}>")}
}}"""


_VALUE = "  vt = Transpose <perm = [0, 2, 1, 3]> (v)\n  vf = Reshape (vt, narrow)\n"
_BACK = "  os = Reshape (o, apart)\n  y = Transpose <perm = [0, 2, 1, 3]> (os)"
_FLAT = "float[B,S,64] y"

HeadsFirst.examples = (
    Example(
        text=_text(f"{_VALUE}  o = ATTEND (qf, kf, vf)\n{_BACK}"), fires=1, emits={f"{OWN}_bnsh": 1, "Transpose": 0}
    ),
    Example(
        text=_text(f"{_VALUE}  o = ATTEND (qf, kf, vf)\n{_BACK}", op="Attention"),
        fires=1,
        emits={STANDARD: 1, "Transpose": 0, "Reshape": 0},
    ),
    Example(
        text=_text(f"{_VALUE}  y = ATTEND (qf, kf, vf)", out=_FLAT), fires=1, emits={f"{OWN}_bnsh": 1, "Transpose": 1}
    ),
    Example(text=_text("  y = ATTEND (qf, kf, flat)", out=_FLAT), because="heads-folded"),
    Example(text=_text("  y = ATTEND (qf, kf, kf)", out=_FLAT), because="heads-folded"),
    Example(
        text=_text(f"{_VALUE}  z = Neg (vf)\n  y = ATTEND (qf, kf, vf)", out=f"{_FLAT}, float[B,T,32] z"),
        because="heads-folded",
    ),
)
