"""What a lowering knows of one attention site: sizes, mask facts, and which kinds of node could hold it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir

from .. import canonical, masks
from ..canonical import AttentionNode
from ..capability import Capability, capability
from ..graph import constant, dims
from ..judge import FORBIDS
from ..rule import Context, Declined
from ..symbols import dim_text, same_dim

__all__ = ["Site", "describe", "require", "study"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A canonical attention with its proven facts.

    Attributes:
        node: The canonical attention.
        heads, kv_heads, head_size, value_size: Static sizes.
        square: Whether query and key lengths are provably equal.
        mask_facts: Typed facts of the boolean mask, None when there is none or nothing is known.
        bias_facts: The same for the additive bias.
        causal: Whether row i provably sees no key after i, by attribute, mask or bias, with square scores.
        typed: What mask and bias say, when all of it is known and exact; else None.
        causal_is_all: Whether mask and bias say nothing that causality does not say.
        padding: The flags when mask and bias together say nothing but which keys exist, else None.
        window: Keys visible to a row, itself included, when causality and a window are all there is; else None.
    """

    node: AttentionNode
    heads: int
    kv_heads: int
    head_size: int
    value_size: int
    square: bool
    mask_facts: masks.MaskFacts | None
    bias_facts: masks.MaskFacts | None
    causal: bool
    typed: tuple[masks.Conjunct, ...] | None
    causal_is_all: bool
    padding: masks.KeyPadding | None
    window: int | None

    @property
    def masked(self) -> bool:
        """Whether the node has a mask or a bias."""
        return self.node.mask is not None or self.node.bias is not None

    @property
    def forbidding(self) -> tuple[ir.Value, ...]:
        """The bias, when it may forbid keys by minus infinity or a very low number; facts that say it cannot count."""
        facts, bias = self.bias_facts, self.node.bias
        if bias is None or (facts is not None and not facts.residual and _is_plain_bias(facts)):
            return ()
        return (bias,)

    @property
    def infinite(self) -> bool:
        """Whether the bias may hold minus infinity."""
        finite = self.bias_facts is not None and self.bias_facts.fill not in (None, float("-inf"))
        return bool(self.forbidding) and not finite

    @property
    def may_be_empty(self) -> bool:
        """Whether mask or bias may leave a row no key, for all that is known of them."""
        if self.causal_is_all or self.window is not None:
            return False
        if self.square and self.typed is not None:
            return not all(map(_keeps_itself, self.typed))
        said = [v for v in (self.node.mask, *self.forbidding) if v is not None]
        more = len(said) + (self.node.causal != "none") > 1  # each may leave a key that another forbids
        return bool(said) and (more or _may_forbid_a_row(said[0]))

    def about_empty_rows(self, *, masked: bool, gives_zero: bool = False) -> dict[str, Any]:
        """What a lowering to an operator says of rows without keys, in the words of :class:`..rule.Replacement`.

        Half numbers near a finite fill are so far apart that such rows are made of rounding.

        Args:
            masked: Whether the operator reads a mask or a bias.
            gives_zero: Whether it gives 0 in such rows.
        """
        named = ("fully-masked-rows",) if masked else ()
        half = self.node.query.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        rounded = half and masked and self.may_be_empty and bool(self.forbidding) and not self.infinite
        return {
            "assumptions": named,
            "rows_of": self.node.node,
            "doubted": masked and self.may_be_empty and not (gives_zero and self.node.empty_rows == "zero"),
            "always": named if rounded else (),
            "forbidding": self.forbidding,
        }

    def kinds(self) -> frozenset[str]:
        """The facts the capability table speaks of."""
        said_by_causality = self.causal_is_all or self.window is not None
        found = {
            "causal": self.causal,
            "bidirectional": not self.causal,
            "mask": (self.node.mask is not None or self.padding is not None) and not said_by_causality,
            "bias": self.node.bias is not None and self.padding is None and not said_by_causality,
            "softcap": bool(self.node.softcap),
            "sink": self.node.sink is not None,
            "grouped": self.kv_heads < self.heads,
            "unequal_value": self.value_size != self.head_size,
            "float32": self.node.query.dtype == ir.DataType.FLOAT,
            "float16": self.node.query.dtype == ir.DataType.FLOAT16,
        }
        return frozenset(k for k, v in found.items() if v)


def _may_forbid_a_row(value: ir.Value) -> bool:
    array = constant(value)
    if array is None or not array.ndim:
        return True
    kept = array if array.dtype.kind == "b" else array > FORBIDS
    return not bool(kept.any(axis=-1).all())


def _keeps_itself(conjunct: masks.Conjunct) -> bool:
    """Whether a part of a mask over square scores lets every row see its own key."""
    if isinstance(conjunct, masks.Causal):
        return conjunct.upper_left or conjunct.lower_right
    if isinstance(conjunct, masks.Window):
        return conjunct.offset == 0 and all(reach is None or reach > 0 for reach in (conjunct.left, conjunct.right))
    return isinstance(conjunct, masks.Always)


def _is_plain_bias(facts: masks.MaskFacts) -> bool:
    """Whether an additive mask is computed numbers alone: no conjunct, and no input of the graph among its addends."""
    masked = any(not isinstance(c, masks.Always) for c in facts.conjuncts)
    return not masked and all(_learned(v) or _of_products(v) for v in facts.additive)


def _learned(value: ir.Value, limit: int = 12) -> bool:
    """Whether a bias is looked up in a constant table, or finite numbers times finite constants: no infinity in it."""
    for _ in range(limit):
        node = value.producer()
        if node is None:
            return _forbids_nothing(value)
        if node.op_type not in ("Gather", "Transpose", "Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Mul"):
            return False
        inputs = [v for v in node.inputs[:1] if v is not None]
        if node.op_type == "Mul":
            factors = [v for v in node.inputs if v is not None]
            return any(v.producer() is None for v in factors) and all(map(_hands_on_no_mask, factors))
        value = inputs[0]
    return False


#: Operators that hand minus infinity on from one of their operands.
_HANDS_ON: Final = frozenset(
    {"Add", "Cast", "Concat", "Div", "Expand", "Gather", "Identity", "Max", "Min", "Mul", "Neg"}
    | {"Reshape", "Slice", "Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)


#: Operators behind which a mask is none any more. Whatever else there is may hand it on: Tile, Clip, Pad, ...
_MIXES: Final = frozenset({"MatMul", "Gemm", "Einsum", "Conv", "Softmax", "Sigmoid", "Tanh", "Exp", "Erf", "Gelu"})


def _of_products(value: ir.Value) -> bool:
    """Whether a bias is made of products of what holds no infinity (SAM: queries times positions), and of constants."""
    waiting, seen = [value], {id(value)}
    while waiting:
        node = (value := waiting.pop()).producer()
        operands = [] if node is None else [v for v in node.inputs if v is not None and _is_float(v)]
        if node is None:
            if not _forbids_nothing(value):
                return False
        elif node.op_type in ("MatMul", "Einsum", "Gemm"):
            if not all(map(_hands_on_no_mask, operands)):
                return False
        elif node.op_type in _HANDS_ON:
            waiting.extend(v for v in operands if id(v) not in seen)
            seen.update(map(id, operands))
        else:
            return False
    return True


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _forbids_nothing(value: ir.Value) -> bool:
    """Whether a value is a constant, and no number in it low enough to take a key's weight away."""
    if value.const_value is None or value.is_graph_input():
        return False
    array = constant(value)
    wide = None if array is None else array.astype(np.float64)
    return wide is not None and bool(np.all((wide > FORBIDS) & np.isfinite(wide)))


def _hands_on_no_mask(value: ir.Value) -> bool:
    """Whether no float input of the graph and no infinite constant comes through to a value."""
    waiting, seen = [value], {id(value)}
    while waiting:
        value = waiting.pop()
        if value.dtype is not None and not value.dtype.is_floating_point():
            continue
        node = value.producer()
        if node is None and (value.const_value is None or value.is_graph_input() or not _finite(value)):
            return False
        if node is not None and node.op_type in ("Log", "Reciprocal"):  # they make infinities themselves
            return False
        operands = node.inputs if node is not None and not _mixes(node) else ()
        fresh = [v for v in operands if v is not None and id(v) not in seen]
        seen.update(map(id, fresh))
        waiting.extend(fresh)
    return True


def _mixes(node: ir.Node) -> bool:
    """Whether an operator's numbers are sums over many of its operands', or bounded: no mask comes through."""
    return node.op_type in _MIXES or "Normalization" in node.op_type


def _finite(value: ir.Value) -> bool:
    """Whether a constant was read and holds no number that could stand for infinity."""
    array = constant(value)
    return array is not None and bool(np.all(np.abs(array.astype(np.float64)) < 1e9))


def study(node: ir.Node) -> Site:
    """Gather the facts of a canonical attention.

    Raises:
        Declined: "unknown-heads" when head counts or sizes are not static.
    """
    site = canonical.read(node)
    sizes = [canonical.heads(site.query), canonical.heads(site.key), canonical.head_size(site.query)]
    value_size = canonical.head_size(site.value)
    if None in sizes or value_size is None:
        raise Declined(
            "unknown-heads",
            f"head count and head size must be fixed; query is {dims(site.query)}, key {dims(site.key)}, "
            f"value {dims(site.value)}",
            at=site.query,
        )
    heads, kv_heads, head_size = (int(s) for s in sizes if s is not None)
    if heads % kv_heads:
        raise Declined("head-groups", f"{heads} heads cannot share {kv_heads} key/value heads", at=site.key)
    query_dim, key_dim = site.query.shape[2], site.key.shape[2]  # type: ignore[index]
    square = same_dim(query_dim, key_dim)
    mask_facts = _analyse(site.mask, query_dim, key_dim)
    bias_facts = _analyse(site.bias, query_dim, key_dim)
    facts = [f for f in (mask_facts, bias_facts) if f is not None]
    known = _only_typed(site, facts)
    if known is not None and not known:  # a mask that forbids nothing
        site = replace(site, mask=None, bias=None)
    causal = square and (site.causal != "none" or any(masks.entails_causal(f) for f in facts))
    return Site(
        node=site,
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        value_size=value_size,
        square=square,
        mask_facts=mask_facts,
        bias_facts=bias_facts,
        causal=causal,
        typed=None if known is None else tuple(known),
        causal_is_all=causal and known is not None and all(_is_causal(c) for c in known),
        padding=_padding(known),
        window=_window(known) if causal else None,
    )


def _only_typed(site: AttentionNode, facts: list[masks.MaskFacts]) -> list[masks.Conjunct] | None:
    """The conjuncts of mask and bias, when they are exact and there is nothing else; None otherwise."""
    given = sum(v is not None for v in (site.mask, site.bias))
    if len(facts) != given or any(not f.exact or f.additive for f in facts):
        return None
    return [c for f in facts for c in f.conjuncts if not isinstance(c, masks.Always)]


def _is_causal(fact: masks.Conjunct) -> bool:
    return isinstance(fact, masks.Causal) and fact.upper_left


def _padding(known: list[masks.Conjunct] | None) -> masks.KeyPadding | None:
    if known is None or len(known) != 1 or not isinstance(known[0], masks.KeyPadding):
        return None
    return known[0]


def _window(known: list[masks.Conjunct] | None) -> int | None:
    """The causal window, when causality and one window of bounded left reach are all there is."""
    windows = [c for c in known or () if isinstance(c, masks.Window)]
    if known is None or len(windows) != 1 or not all(_is_causal(c) or c is windows[0] for c in known):
        return None
    window = windows[0]
    return window.left if window.offset == 0 and window.right in (None, 1) else None


def _analyse(value: ir.Value | None, query_dim: Any, key_dim: Any) -> masks.MaskFacts | None:
    return None if value is None else masks.analyse(value, query_dim=query_dim, key_dim=key_dim)


def require(op: str, site: Site, context: Context) -> Capability:
    """The capability row that covers a site.

    Raises:
        Declined: with the first thing the row does not cover.
    """
    target = context.target
    row = capability(op, target.name, target.onnxruntime)
    version = ".".join(map(str, target.onnxruntime))
    if row is None:
        raise Declined("no-capability", f"{op} has no kernel on target '{target.name}' with onnxruntime {version}")
    if target.opset < row.opset:
        raise Declined("opset-too-old", f"{op} needs opset {row.opset}, the graph has {target.opset}")
    dtype = site.node.query.dtype
    if dtype not in row.dtypes:
        raise Declined("dtype", f"{op} on '{target.name}' takes {_names(row.dtypes)}, found {dtype}")
    if site.head_size % row.head_multiple:
        raise Declined("head-size", f"{op} needs a head size that {row.head_multiple} divides, found {site.head_size}")
    if row.max_head is not None and max(site.head_size, site.value_size) > row.max_head:
        raise Declined("head-size", f"{op} takes heads of at most {row.max_head}, found {site.head_size}")
    if site.value_size != site.head_size and not row.unequal_value:
        raise Declined("unequal-value-size", f"{op} needs one head size, found {site.head_size} and {site.value_size}")
    if not site.square and not row.cross:
        raise Declined("cross-attention", f"{op} needs as many queries as keys, found {_lengths(site)}")
    if not site.causal and (row.bidirectional is None or target.onnxruntime < row.bidirectional):
        raise Declined("not-causal", f"{op} computes causal attention only; no causal mask is proven here")
    if site.node.softcap and (row.softcap is None or target.onnxruntime < row.softcap):
        raise Declined("softcap", f"{op} on onnxruntime {version} has no softcap before the mask")
    if site.node.sink is not None and not row.sink:
        raise Declined("sink", f"{op} has no sink logit")
    if site.node.weights is not None and not row.weights:
        raise Declined("weights-output", f"the attention weights are read elsewhere; {op} does not return them")
    return row


def _names(dtypes: tuple[ir.DataType, ...]) -> str:
    return ", ".join(d.name.lower() for d in dtypes)


def _lengths(site: Site) -> str:
    query, key = site.node.query.shape, site.node.key.shape
    assert query is not None and key is not None
    return f"{dim_text(query[2])} and {dim_text(key[2])}"


def describe(site: Site) -> dict[str, Any]:
    """The facts of a site as plain data, for the report."""
    node = site.node
    facts: dict[str, Any] = {
        "heads": site.heads,
        "kv_heads": site.kv_heads,
        "head_dim": site.head_size,
        "value_dim": site.value_size,
        "scale": node.scale,
        "causal": site.causal or node.causal != "none",
        "cross": not site.square,
    }
    if node.softcap:
        facts["softcap"] = node.softcap
    if node.sink is not None:
        facts["sink"] = True
    for name, value, found in (("mask", node.mask, site.mask_facts), ("bias", node.bias, site.bias_facts)):
        if value is not None:
            facts[name] = {"mask": "unknown"} if found is None else masks.describe(found)
    return facts
