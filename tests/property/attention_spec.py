"""One random attention as plain data: every way it may be written is a field, the plainest way the default."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MAX_LENGTH", "WIDTH", "AttentionSpec", "draw", "for_half", "for_older_exporter", "simpler"]

#: Width of the module inputs.
WIDTH = 24
#: Masks that look at nothing but the places of query and key.
INDEX_MASKS = {"causal", "lower_right", "window", "band", "prefix", "block"}
#: Guards and ways to write a softmax that ask the mask.
_BY_MASK = {"zero_rows", "no_keys", "again", "exp_kept"}
#: Longest sequence that tables and buffers of a module are made for.
MAX_LENGTH = 40


@dataclass(frozen=True)
class AttentionSpec:
    """How one attention is written.

    Attributes:
        heads, kv_heads, size, value_size: Head counts and sizes.
        cross: Keys and values come from another sequence.
        time_first: Inputs and output are (S, B, D).
        packing: "separate", "split" (one linear, split in three), "unbind" (B, S, 3, N, H), "heads_first"
            (B, S, N, 3, H), "last" (B, S, N, H, 3) or "latent" (keys and values from one narrow projection, half of
            the key shared by all heads).
        linear_bias: Whether projections have biases.
        repeat: How fewer key/value heads meet the query heads: "expand", "interleave", "index", "grouped" (a
            5-D product) or "sdpa" (enable_gqa).
        product: "sdpa", "matmul", "bmm", "baddbmm" or "einsum".
        letters: Order of the letters of the score einsum: "bhqk", "hbqk" or "bqhk".
        rename: Permutation of the letters' names.
        swap: Whether the einsum takes the key first.
        key_transpose: "T" (transpose), "mT" or "permute" (straight from the head split).
        scale: "scores", "divide", "query", "key", "both", "late" (after the bias), "none", "learned", "cosine",
            "negative".
        softcap: 0 for none.
        bias: "", "table", "alibi", "alibi_table", "t5", "relative", "input", "rows", "keys", "heads".
        masks: Names of what forbids keys, joined by "and".
        window: Reach of the window masks, prefix of the prefix mask, block length of the block mask.
        fill: How the mask acts: "-inf", "min", "1e9", "where", "where_min", "add_inf", "add_min", "add_1e4".
        mask_first: Whether the mask acts before the bias.
        floor: "", "max" or "clamp": the masked scores are raised to the lowest number.
        apart: Whether each mask acts by itself instead of all of them joined.
        rows: How masks are indexed: "outer" (None axes) or "unsqueeze".
        sink: "", "logit" (a learned logit per head) or "one" (softmax with 1 in the denominator).
        softmax: "plain", "float", "exp", "exp_max", "log"; "again" and "exp_kept" set weights to 0 that the mask
            forbids and divide by the sum of the rest.
        guard: "", "nan_to_num", "where", "zero_rows" (weights of forbidden keys) or "no_keys" (rows without keys).
        rotary: "", "half", "interleaved", "partial", "axial" (one table of rows and columns), "axes" (half of the head
            turned by row, half by column), "sections" (one table put together from three positions a token).
        norm: "", "rms" or "layer", over the heads of query and key.
        weights: Whether the attention weights are an output too.
        project: Whether an output projection follows.
        dropout: Whether a dropout (idle in eval) stands after the softmax.
        relative: Products of query or key with vectors of relative positions, added to the scores: "", gathered as
            DeBERTa does ("c2p", "p2c", "both"), or every product made and its rows shifted ("shift" over a padded
            view, "shift_xl" for causal attention, "shift_select" by index_select).
        position_bias: Whether a shifted product has biases of its own: one on the query of each product.
        shared_positions: Whether the projections of key and query project the positions too.
        tokens: "" (a sequence), "channels" (an image, channels first, projected by 1 x 1 convolutions), "windows" (an
            image parted into windows that are folded into the batch) or "shifted" (windows of a rolled image).
        reduce: "", "stride", "pool" or "conv": keys and values are made of half as many tokens.
        memory: "", "learned" (two keys and values before all others), "zeros" (one of zeros behind them) or "sequence"
            (keys of another sequence before those of the own).
        talking: "", "before", "after" or "both": heads are mixed before or after the softmax.
    """

    heads: int = 4
    kv_heads: int = 4
    size: int = 8
    value_size: int = 8
    cross: bool = False
    time_first: bool = False
    packing: str = "separate"
    linear_bias: bool = True
    repeat: str = "expand"
    product: str = "matmul"
    letters: str = "bhqk"
    rename: str = "bhqkdv"
    swap: bool = False
    key_transpose: str = "T"
    scale: str = "scores"
    softcap: float = 0.0
    bias: str = ""
    masks: tuple[str, ...] = ()
    window: int = 3
    fill: str = "-inf"
    mask_first: bool = False
    floor: str = ""
    apart: bool = False
    rows: str = "outer"
    sink: str = ""
    softmax: str = "plain"
    guard: str = ""
    rotary: str = ""
    norm: str = ""
    weights: bool = False
    project: bool = True
    dropout: bool = False
    relative: str = ""
    position_bias: bool = False
    shared_positions: bool = False
    tokens: str = ""
    reduce: str = ""
    memory: str = ""
    talking: str = ""

    @property
    def other_keys(self) -> bool:
        """Whether there are other keys than queries."""
        return bool(self.cross or self.reduce or self.memory)

    @property
    def biased(self) -> bool:
        """Whether something is added to the scores besides masks."""
        return bool(self.bias or self.relative)

    @property
    def by_mask(self) -> bool:
        """Whether the weights are under a mask themselves."""
        return self.guard in _BY_MASK or self.softmax in _BY_MASK

    @property
    def masked(self) -> bool:
        """Whether anything forbids keys."""
        return bool(self.masks)

    def fits(self) -> bool:
        """Whether the fields can stand together in one module."""
        grouped = self.kv_heads != self.heads
        rules = (
            self.heads % self.kv_heads == 0,
            not (self.cross and self.packing not in ("separate", "latent")),
            not ((self.cross or self.reduce or self.memory == "sequence") and self.rotary),
            not (self.packing in ("unbind", "heads_first", "last") and (grouped or self.value_size != self.size)),
            not (self.other_keys and {"segments", "queries", "block"} & set(self.masks)),
            not (self.repeat == "sdpa" and self.product != "sdpa"),
            not (self.repeat == "grouped" and (self.product != "matmul" or self.rich or not grouped)),
            self._fits_positions(),
            self._fits_tokens(),
            not (self.product == "sdpa" and self.written_out),
            not (self.product in ("bmm", "baddbmm") and self.scale in ("learned", "cosine", "negative")),
            not (self.time_first and self.product == "einsum"),
            not (self.by_mask and (not self.masked or self.product in ("bmm", "baddbmm"))),
            not (self.softmax in _BY_MASK and (self.guard or self.sink)),
            not (self.sink and (self.product == "einsum" and self.letters != "bhqk")),
            not (self.sink and self.guard),
            not (self.rotary == "partial" and self.size < 8),
        )
        return all(rules)

    def _fits_positions(self) -> bool:
        shifted, grouped = self.relative.startswith("shift"), self.kv_heads != self.heads
        latent = self.packing == "latent"
        rules = (
            not (self.position_bias and not shifted),
            not (self.shared_positions and (shifted or not self.relative or self.tokens == "channels")),
            not (self.shared_positions and (self.packing != "separate" or grouped)),
            not (self.relative == "shift_xl" and ("causal" not in self.masks or self.other_keys)),
            not (self.rotary in ("axial", "axes") and self.size % 4),
            not (self.rotary == "sections" and (self.size < 8 or self.size % 8 or self.tokens)),
            not (latent and (grouped or self.norm or self.size % 4 or self.tokens == "channels")),
            not (latent and self.rotary not in ("", "half", "interleaved")),
            not (self.talking and (self.product not in ("matmul", "einsum") or self.letters != "bhqk")),
        )
        return all(rules)

    def _fits_tokens(self) -> bool:
        windows = self.tokens in ("windows", "shifted")
        rules = (
            not (self.reduce and (self.packing not in ("separate", "latent") or self.time_first or windows)),
            not (self.memory == "sequence" and (self.cross or self.reduce or self.tokens)),
            not (self.memory == "sequence" and self.packing not in ("separate", "latent")),
            not (self.tokens and (self.time_first or self.weights or self.bias == "input")),
            not (self.tokens and not set(self.masks) <= INDEX_MASKS),
            not (windows and self.cross),
            not (self.tokens == "channels" and self.packing not in ("separate", "unbind")),
            not (self.tokens == "shifted" and (self.product != "matmul" or self.memory)),
        )
        return all(rules)

    @property
    def rich(self) -> bool:
        """Whether something stands between the score product and the softmax besides a scale."""
        between = self.softcap or self.sink or self.weights or self.talking or self.scale == "learned"
        return bool(self.masks or self.biased or between or self.tokens == "shifted")

    @property
    def written_out(self) -> bool:
        """Whether scaled_dot_product_attention cannot say it."""
        return bool(
            self.softcap
            or self.sink
            or self.softmax != "plain"
            or self.weights
            or self.guard
            or self.scale in ("late", "learned", "cosine", "divide", "key", "both", "negative")
            or self.dropout
            or self.floor
            or self.talking
        )


_MASKS: tuple[tuple[str, ...], ...] = (
    (),
    (),
    ("causal",),
    ("causal",),
    ("lower_right",),
    ("padding",),
    ("padding",),
    ("lengths",),
    ("left",),
    ("input",),
    ("window",),
    ("band",),
    ("prefix",),
    ("block",),
    ("segments",),
    ("queries",),
    ("causal", "padding"),
    ("causal", "padding"),
    ("causal", "left"),
    ("window", "padding"),
    ("causal", "segments"),
    ("causal", "input"),
    ("prefix", "padding"),
    ("causal", "window"),
)

_CHOICES: dict[str, tuple[Any, ...]] = {
    "heads": (4, 4, 2, 6, 1),
    "kv_heads": (1, 2, 3, 4),
    "size": (8, 8, 16, 4, 6),
    "value_size": (8, 8, 16, 4, 6),
    "cross": (False, False, False, True),
    "time_first": (False, False, False, True),
    "packing": ("separate", "separate", "separate", "split", "unbind", "heads_first", "last", "latent"),
    "linear_bias": (True, True, False),
    "repeat": ("expand", "expand", "interleave", "index", "grouped", "sdpa"),
    "product": ("sdpa", "matmul", "matmul", "matmul", "bmm", "baddbmm", "einsum", "einsum"),
    "letters": ("bhqk", "bhqk", "hbqk", "bqhk"),
    "swap": (False, True),
    "key_transpose": ("T", "mT", "permute"),
    "scale": ("scores", "divide", "query", "key", "both", "late", "none", "learned", "cosine", "negative"),
    "softcap": (0.0, 0.0, 0.0, 0.0, 5.0),
    "bias": (
        "",
        "",
        "",
        "",
        "table",
        "alibi",
        "alibi_table",
        "t5",
        "relative",
        "input",
        "rows",
        "keys",
        "heads",
    ),
    "masks": _MASKS,
    "window": (1, 2, 3, 4, 7, 10, 12, 20),
    "fill": ("-inf", "-inf", "min", "1e9", "where", "where_min", "add_inf", "add_min", "add_1e4"),
    "mask_first": (False, True),
    "floor": ("",) * 8 + ("max", "clamp"),
    "apart": (False, False, True),
    "rows": ("outer", "unsqueeze"),
    "sink": ("",) * 8 + ("logit", "one"),
    "softmax": ("plain",) * 6 + ("float", "exp", "exp_max", "log") * 2 + ("again", "exp_kept"),
    "guard": ("",) * 10 + ("nan_to_num", "where", "zero_rows", "no_keys") * 2,
    "rotary": ("",) * 5 + ("half", "interleaved", "partial", "axial", "axes", "sections"),
    "norm": ("",) * 5 + ("rms", "layer"),
    "weights": (False,) * 7 + (True,),
    "project": (True, False),
    "dropout": (False, False, True),
    "relative": ("",) * 30 + ("c2p", "p2c", "both", "shift", "shift_xl", "shift_select"),
    "position_bias": (False, True),
    "shared_positions": (False, True),
    "tokens": ("",) * 12 + ("channels", "windows", "shifted"),
    "reduce": ("",) * 15 + ("stride", "pool", "conv"),
    "memory": ("",) * 12 + ("learned", "zeros", "sequence"),
    "talking": ("",) * 40 + ("before", "after", "both"),
}


_PLAIN_FOR_GROUPED = (
    "softcap", "sink", "masks", "bias", "weights", "scale", "packing", "guard", "relative", "talking", "tokens",
)  # fmt: skip
_PLAIN_FOR_SDPA = ("softcap", "floor", "sink", "softmax", "weights", "guard", "dropout", "talking")


def draw(rng: random.Random, forced: Mapping[str, Sequence[Any]] | None = None) -> AttentionSpec:
    """A random attention whose fields fit together; ``forced`` names fields and the only values they may take."""
    forced = forced or {}
    while True:
        fields = _drawn(rng) | {name: rng.choice(values) for name, values in forced.items()}
        if not fields["relative"].startswith("shift"):  # nothing is shifted that could have biases of its own
            fields["position_bias"] = False
        if not fields["relative"] or fields["relative"].startswith("shift"):
            fields["shared_positions"] = False
        spec = AttentionSpec(**fields)
        if spec.fits() and all(getattr(spec, name) in values for name, values in forced.items()):
            return spec


def _drawn(rng: random.Random) -> dict[str, Any]:
    fields: dict[str, Any] = {name: rng.choice(values) for name, values in _CHOICES.items()}
    if rng.random() < 0.6:  # most attention has one head count and one size
        fields["kv_heads"] = fields["heads"]
    if rng.random() < 0.6 or fields["product"] == "sdpa":
        fields["value_size"] = fields["size"]
    if fields["product"] == "sdpa":  # what the call cannot say stays plain
        fields |= {name: getattr(AttentionSpec, name) for name in _PLAIN_FOR_SDPA}
        fields["scale"] = rng.choice(("scores", "query", "none"))
    if fields["repeat"] == "grouped" and rng.random() < 0.3:  # a five-axis product has room for little else
        fields |= {name: getattr(AttentionSpec, name) for name in _PLAIN_FOR_GROUPED}
        fields |= {"heads": 4, "kv_heads": rng.choice((1, 2)), "product": "matmul"}
    letters = list("bhqkdv")
    rng.shuffle(letters)
    fields["rename"] = "".join(letters)
    return fields


def for_older_exporter(spec: AttentionSpec) -> AttentionSpec:
    """The nearest attention that torch's older exporter has operators for."""
    key = "T" if spec.key_transpose == "mT" else spec.key_transpose
    guard = "where" if spec.guard == "nan_to_num" else spec.guard
    repeat = "expand" if spec.repeat == "sdpa" else spec.repeat
    return dataclasses.replace(spec, key_transpose=key, guard=guard, repeat=repeat)


def for_half(spec: AttentionSpec) -> AttentionSpec:
    """The nearest attention that float16 can hold: -1e9 and the exponentials of large scores are too large."""
    fill = "min" if spec.fill == "1e9" else spec.fill
    softmax = "exp_max" if spec.softmax == "exp" else spec.softmax
    return dataclasses.replace(spec, fill=fill, softmax=softmax)


def simpler(spec: AttentionSpec) -> Iterator[AttentionSpec]:
    """Every spec that differs from this one by a single field set to its plain value."""
    plain = AttentionSpec()
    changes: list[Callable[[], AttentionSpec]] = []
    for field in dataclasses.fields(spec):
        if getattr(spec, field.name) != getattr(plain, field.name):
            value = getattr(plain, field.name)
            changes.append(lambda name=field.name, value=value: dataclasses.replace(spec, **{name: value}))
    changes.append(lambda: dataclasses.replace(spec, heads=4, kv_heads=4))
    changes.append(lambda: dataclasses.replace(spec, size=8, value_size=8))
    changes.extend(
        lambda name=name: dataclasses.replace(spec, masks=tuple(m for m in spec.masks if m != name))
        for name in spec.masks
    )
    for change in changes:
        candidate = change()
        if candidate != spec and candidate.fits():
            yield candidate
