"""``deployml::FlashAttention``: the operator as data, its float64 reference and its naive twin.

The operator has one name per input signature, because an ONNX function body (the fallback that a model carries)
cannot have absent inputs::

    FlashAttention[_bnsh|_packed][_past|_cache][_lengths][_mask][_bias][_slopes|_table][_sink][_weights]

Inputs are ``query, key, value`` and then what the name lists, in that order. With T one float type (float32,
float16 or bfloat16)::

    query        T      (B, S, N*H)       or (B, N, S, H) with _bnsh
    key          T      (B, T, Nkv*H)     or (B, Nkv, T, H)
    value        T      (B, T, Nkv*Hv)    or (B, Nkv, T, Hv)
    packed       T      (B, S, (N + 2*Nkv)*H)    in place of these three: rows of query, key, value (_packed)
    past_key     T      (B, Nkv, P, H)    prepended to key; keys then number P + T   (_past)
    past_value   T      (B, Nkv, P, Hv)
    past_key     T      (B, Nkv, C, H)    buffers of C keys; key is written into them (_cache)
    past_value   T      (B, Nkv, C, Hv)
    key_lengths  int32  (B,)              keys of each batch row, 0 to T             (_lengths)
    mask         bool   broadcasts to (B, N, S, T), True = attend                    (_mask)
    bias         T      broadcasts to (B, N, S, T), added to the scaled, capped scores (_bias)
    slopes       T      (N,)              ALiBi: -slope * |position(i) - j| is added (_slopes)
    table        T      (N or 1, 2D + 1)  relative positions: table[h, D + clip(j - position(i), -D, D)] is
                                          added, so a (S, T) bias is never made       (_table)
    sink         T      (N,)              logit of a key without value               (_sink)

Outputs are ``output`` (B, S, N*Hv) or (B, N, S, Hv); with ``_past`` or ``_cache`` also ``present_key`` and
``present_value``; with ``_weights`` (which goes with neither) also ``weights`` (B, N, S, T), the softmax result.

``_cache`` asks for ``_lengths``. In a name with it T is C, and key_lengths counts the new keys too: the rows of
``key`` become the keys [length - rows, length) of their batch row, those before key 0 are dropped. Where present_key
and past_key are the same memory (one OrtValue bound to both), only the new rows are written.

position(i) is i, or i + length - S with ``lower_right`` (length: the key count of the batch row). Key j takes part
in row i when j < length, position(i) - window_left <= j <= position(i) + window_right (a bound of -1 is none;
``causal`` sets window_right to 0) and the mask allows it. A row without any key gives 0; finite values in a bias
stay what they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ..libraries import DOMAIN

__all__ = [
    "ATTRIBUTES",
    "DTYPES",
    "NAME",
    "Attributes",
    "Layout",
    "Signature",
    "largest_score",
    "naive",
    "output_shape",
    "reference",
    "signatures",
]

NAME: Final = "FlashAttention"
Layout = Literal["bsnh", "bnsh", "packed"]
Array = npt.NDArray[np.generic]

#: Types T may take.
DTYPES: Final = ("float32", "float16", "bfloat16")

#: Optional parts of a name, in order, with the inputs each adds.
_PARTS: Final[dict[str, tuple[str, ...]]] = {
    "past": ("past_key", "past_value"),
    "cache": ("past_key", "past_value"),
    "lengths": ("key_lengths",),
    "mask": ("mask",),
    "bias": ("bias",),
    "slopes": ("slopes",),
    "table": ("table",),
    "sink": ("sink",),
    "weights": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Which inputs a call has, and so its operator name.

    Attributes:
        layout: "bsnh" for (B, S, N*H) tensors, "bnsh" for (B, N, S, H), "packed" for one (B, S, (N + 2*Nkv)*H)
            tensor of query, key and value (without a past, and without weights).
        past: past_key and past_value are given; present_key and present_value come out.
        cache: The same with buffers of full length, which the new keys are written into.
        lengths, mask, bias, slopes, table, sink: The input of that name is given.
        weights: The softmax result comes out as well.

    Raises:
        InputError: for parts that do not go together.
    """

    layout: Layout = "bsnh"
    past: bool = False
    cache: bool = False
    lengths: bool = False
    mask: bool = False
    bias: bool = False
    slopes: bool = False
    table: bool = False
    sink: bool = False
    weights: bool = False

    def __post_init__(self) -> None:
        wrong = next((text for broken, text in _conflicts(self) if broken), None)
        if wrong is not None:
            raise InputError(f"no {NAME} {wrong}", hint="docs/custom-ops.md lists which parts go together")

    @property
    def op_type(self) -> str:
        """Name of the operator, such as "FlashAttention_bnsh_bias"."""
        parts = [part for part in _PARTS if getattr(self, part)]
        return "_".join([NAME, *([self.layout] if self.layout != "bsnh" else []), *parts])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        extra = (name for part, names in _PARTS.items() if getattr(self, part) for name in names)
        return (*(("packed",) if self.layout == "packed" else ("query", "key", "value")), *extra)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        present = ("present_key", "present_value") if self.past or self.cache else ()
        return ("output", *present, *(("weights",) if self.weights else ()))

    @classmethod
    def of(cls, op_type: str) -> Signature:
        """Read a signature back from an operator name.

        Raises:
            InputError: if the name is none of this operator's.
        """
        head, *parts = op_type.split("_")
        flags = {part: part in parts for part in _PARTS}
        try:
            layout = next((name for name in get_args(Layout) if name in parts), "bsnh")
            signature = cls(layout=layout, **flags)
        except InputError:
            signature = None
        if head != NAME or signature is None or signature.op_type != op_type:
            raise InputError(
                f"'{op_type}' is no name of {DOMAIN}::{NAME}",
                hint=f"write {NAME} and then, in this order, any of: _bnsh _packed "
                + " ".join(f"_{p}" for p in _PARTS),
            )
        return signature


def _conflicts(s: Signature) -> tuple[tuple[bool, str], ...]:
    """Parts that do not go together, and how to say so."""
    return (
        (s.past and s.cache, "has both past and cache"),
        (s.cache and not s.lengths, "has a cache without key_lengths"),
        (s.slopes and s.table, "has both slopes and table"),
        (s.weights and (s.past or s.cache), "returns weights beside present keys"),
        (s.layout == "packed" and (s.past or s.cache), "has a past beside packed tensors"),
        (s.layout == "packed" and s.weights, "returns weights of packed tensors"),
    )


def signatures() -> tuple[Signature, ...]:
    """Every signature the library registers."""
    names = tuple(_PARTS)
    found = []
    for layout in get_args(Layout):
        for bits in range(2 ** len(names)):
            with suppress(InputError):
                found.append(Signature(layout=layout, **{n: bool(bits >> i & 1) for i, n in enumerate(names)}))
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The node's attributes. All of them are written to every node: function bodies refer to them.

    Attributes:
        num_heads: Query heads N.
        kv_heads: Key-value heads Nkv; N is a multiple of it.
        scale: Factor on the score product; 0 stands for 1 / sqrt(H).
        causal: 1 keeps the keys up to the row's position.
        lower_right: 1 aligns the last row with the last key (decoding), 0 the first row with the first key.
        window_left: Keys kept before the position, -1 for all.
        window_right: Keys kept after it, -1 for all.
        softcap: c of c * tanh(score / c), 0 for none.
    """

    num_heads: int
    kv_heads: int
    scale: float = 0.0
    causal: int = 0
    lower_right: int = 0
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0

    @property
    def right(self) -> int:
        """The effective window_right: 0 under causality."""
        return 0 if self.causal else self.window_right


#: Attribute name to its ONNX type.
ATTRIBUTES: Final[dict[str, Literal["INT", "FLOAT"]]] = {
    f.name: "FLOAT" if f.name in ("scale", "softcap") else "INT" for f in fields(Attributes)
}


def output_shape(signature: Signature, attributes: Attributes, inputs: Mapping[str, Array]) -> tuple[int, ...]:
    """Shape of ``output`` for these inputs."""
    if signature.layout == "packed":
        *lead, width = inputs["packed"].shape
        return (*lead, width // (attributes.num_heads + 2 * attributes.kv_heads) * attributes.num_heads)
    query, value = inputs["query"].shape, inputs["value"].shape
    if signature.layout == "bnsh":
        return (*query[:3], value[3])
    return (query[0], query[1], value[2] // attributes.kv_heads * attributes.num_heads)


def reference(
    signature: Signature, attributes: Attributes, inputs: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float64], ...]:
    """The meaning of the operator, in float64, written to be obviously right.

    Args:
        signature: Which inputs there are.
        attributes: The node's attributes.
        inputs: Arrays under the names of ``signature.inputs``.

    Returns:
        One array per output of the signature.
    """
    return _attend(signature, attributes, inputs, np.dtype(np.float64))


def naive(
    signature: Signature, attributes: Attributes, inputs: Mapping[str, Array]
) -> tuple[npt.NDArray[np.generic], ...]:
    """The same without any trick in float32, rounded to the type of the first input: the yardstick."""
    results = _attend(signature, attributes, inputs, np.dtype(np.float32))
    dtype = inputs[signature.inputs[0]].dtype
    return tuple(result.astype(dtype) for result in results)


def largest_score(signature: Signature, attributes: Attributes, inputs: Mapping[str, Array]) -> float:
    """How large the numbers are that become logits, in float64: float32 rounds them by that times half its epsilon.

    The largest finite ``|query . key * scale|`` over all rows and keys, and the largest mean that a row's weights give
    to ``|bias|``: what a bias rules out rounds nothing, but beside a sink a row may have no other key.
    """
    given = {k: v if k in ("mask", "key_lengths") else v.astype(np.float64) for k, v in inputs.items()}
    query, key, _ = _unpacked(signature, attributes, given, np.dtype(np.float64))
    with np.errstate(all="ignore"):
        scores = query @ np.repeat(key, attributes.num_heads // attributes.kv_heads, axis=1).swapaxes(2, 3)
        found = float(np.max(np.abs(scores), where=np.isfinite(scores), initial=0.0))
        if "bias" not in given:
            return found
        weights = _weigh(attributes, given, scores)
        means = np.nansum(weights * np.abs(given["bias"]), axis=3) / weights.sum(axis=3)
    return found + float(np.max(means, where=np.isfinite(means), initial=0.0))


def _unpacked(
    signature: Signature, a: Attributes, given: Mapping[str, Array], dtype: np.dtype
) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
    """Scaled query, key and value with the past, all (B, heads, length, dim)."""
    apart = (
        _apart(given["packed"], a) if signature.layout == "packed" else [given[n] for n in ("query", "key", "value")]
    )
    heads = (a.num_heads, a.kv_heads, a.kv_heads)
    query, key, value = (_heads_first(x.astype(dtype), n, signature) for x, n in zip(apart, heads, strict=True))
    if signature.past:
        key = np.concatenate([given["past_key"].astype(dtype), key], axis=2)
        value = np.concatenate([given["past_value"].astype(dtype), value], axis=2)
    if signature.cache:
        key = _written(given["past_key"].astype(dtype), key, given["key_lengths"])
        value = _written(given["past_value"].astype(dtype), value, given["key_lengths"])
    with np.errstate(all="ignore"):
        return query * dtype.type(a.scale or 1.0 / np.sqrt(query.shape[3])), key, value


def _apart(packed: npt.NDArray, a: Attributes) -> list[npt.NDArray]:
    """Query, key and value (B, S, heads * H) out of one tensor of them."""
    dim = packed.shape[2] // (a.num_heads + 2 * a.kv_heads)
    ends = [a.num_heads * dim, (a.num_heads + a.kv_heads) * dim]
    return np.split(packed, ends, axis=2)


def _written(buffer: npt.NDArray, fresh: npt.NDArray, lengths: npt.NDArray) -> npt.NDArray:
    """The buffer with the rows of ``fresh`` as the last ones of each length."""
    result = buffer.copy()
    for b, length in enumerate(lengths.astype(np.int64)):
        for row, at in enumerate(range(length - fresh.shape[2], length)):
            if at >= 0:
                result[b, :, at] = fresh[b, :, row]
    return result


def _attend(
    signature: Signature, a: Attributes, inputs: Mapping[str, Array], dtype: np.dtype
) -> tuple[npt.NDArray, ...]:
    given = {k: v if k in ("mask", "key_lengths") else v.astype(dtype) for k, v in inputs.items()}
    query, key, value = _unpacked(signature, a, given, dtype)
    group = a.num_heads // a.kv_heads
    with np.errstate(all="ignore"):
        scores = query @ np.repeat(key, group, axis=1).swapaxes(2, 3)
        weights = _weigh(a, given, scores)
        values = np.repeat(value, group, axis=1)
        output = weights @ values
    if signature.layout != "bnsh":
        batch, heads, rows, dim = output.shape
        output = output.swapaxes(1, 2).reshape(batch, rows, heads * dim)
    present = (key, value) if signature.past or signature.cache else ()
    return (output, *present, *((weights,) if signature.weights else ()))


def _heads_first(x: npt.NDArray, heads: int, signature: Signature) -> npt.NDArray:
    if signature.layout == "bnsh":
        return x
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def _weigh(a: Attributes, given: Mapping[str, npt.NDArray], scores: npt.NDArray) -> npt.NDArray:
    """Scores (B, N, S, T) to weights of the same shape."""
    batch, _, rows, keys = scores.shape
    lengths = given.get("key_lengths", np.full(batch, keys, np.int32)).astype(np.int64)
    offset = lengths - rows if a.lower_right else np.zeros(batch, np.int64)
    position = (np.arange(rows) + offset[:, None])[:, None, :, None]
    j = np.arange(keys)
    if a.softcap:
        cap = scores.dtype.type(a.softcap)
        scores = cap * np.tanh(scores / cap)
    if "slopes" in given:
        scores = scores - given["slopes"][:, None, None] * np.abs(position - j).astype(scores.dtype)
    if "table" in given:
        reach = given["table"].shape[1] // 2
        looked_up = given["table"][:, np.clip(j - position, -reach, reach) + reach]  # (N or 1, B, 1, S, T)
        scores = scores + looked_up[:, :, 0].swapaxes(0, 1)
    if "bias" in given:
        scores = scores + given["bias"]
    keep = j < lengths[:, None, None, None]
    if a.window_left >= 0:
        keep = keep & (j >= position - a.window_left)
    if a.right >= 0:
        keep = keep & (j <= position + a.right)
    if "mask" in given:
        keep = keep & given["mask"]
    return _softmax(np.where(keep, scores, scores.dtype.type(-np.inf)), given.get("sink"))


def _softmax(scores: npt.NDArray, sink: npt.NDArray | None) -> npt.NDArray:
    """Softmax over keys with the sink's share taken out; rows of -inf become 0."""
    lowest = scores.dtype.type(-np.inf)
    top = np.max(scores, axis=3, keepdims=True, initial=lowest)
    if sink is not None:
        top = np.maximum(top, sink[:, None, None])
    top = np.where(top == lowest, scores.dtype.type(0), top)
    weights = np.exp(scores - top)
    total = weights.sum(axis=3, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink[:, None, None] - top)
    return weights / np.where(total == 0, scores.dtype.type(1), total)
