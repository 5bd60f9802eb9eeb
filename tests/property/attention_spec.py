"""One random attention as plain data: every way it may be written is a field, the plainest way the default."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["MAX_LENGTH", "WIDTH", "AttentionSpec", "draw", "for_half", "for_older_exporter", "simpler"]

#: Width of the module inputs.
WIDTH = 24
#: Longest sequence that tables and buffers of a module are made for.
MAX_LENGTH = 24


@dataclass(frozen=True)
class AttentionSpec:
    """How one attention is written.

    Attributes:
        heads, kv_heads, size, value_size: Head counts and sizes.
        cross: Keys and values come from another sequence.
        time_first: Inputs and output are (S, B, D).
        packing: "separate", "split" (one linear, split in three), "unbind" (B, S, 3, N, H), "heads_first"
            (B, S, N, 3, H) or "last" (B, S, N, H, 3).
        linear_bias: Whether projections have biases.
        repeat: How fewer key/value heads meet the query heads: "expand", "interleave", "index", "grouped" (a
            5-D product) or "sdpa" (enable_gqa).
        product: "sdpa", "matmul", "bmm", "baddbmm" or "einsum".
        letters: Order of the letters of the score einsum: "bhqk", "hbqk" or "bqhk".
        rename: Permutation of the letters' names.
        swap: Whether the einsum takes the key first.
        key_transpose: "T" (transpose), "mT" or "permute" (straight from the head split).
        scale: "scores", "divide", "query", "key", "both", "late" (after the bias), "none", "learned", "cosine".
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
        softmax: "plain", "float", "exp", "exp_max", "log".
        guard: "", "nan_to_num", "where" or "zero_rows".
        rotary: "", "half", "interleaved", "partial".
        norm: "", "rms" or "layer", over the heads of query and key.
        weights: Whether the attention weights are an output too.
        project: Whether an output projection follows.
        dropout: Whether a dropout (idle in eval) stands after the softmax.
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

    @property
    def masked(self) -> bool:
        """Whether anything forbids keys."""
        return bool(self.masks)

    def fits(self) -> bool:
        """Whether the fields can stand together in one module."""
        grouped = self.kv_heads != self.heads
        rules = (
            self.heads % self.kv_heads == 0,
            not (self.cross and (self.packing != "separate" or self.rotary)),
            not (self.packing in ("unbind", "heads_first", "last") and (grouped or self.value_size != self.size)),
            not (self.cross and {"segments", "queries", "block"} & set(self.masks)),
            not (self.repeat == "sdpa" and self.product != "sdpa"),
            not (self.repeat == "grouped" and (self.product != "matmul" or self.rich or not grouped)),
            not (self.product == "sdpa" and self.written_out),
            not (self.product in ("bmm", "baddbmm") and self.scale in ("learned", "cosine")),
            not (self.time_first and self.product == "einsum"),
            not (self.guard == "zero_rows" and (not self.masked or self.product in ("bmm", "baddbmm"))),
            not (self.sink and (self.product == "einsum" and self.letters != "bhqk")),
            not (self.sink and self.guard),
            not (self.rotary == "partial" and self.size < 8),
        )
        return all(rules)

    @property
    def rich(self) -> bool:
        """Whether something stands between the score product and the softmax besides a scale."""
        return bool(self.masks or self.bias or self.softcap or self.sink or self.weights or self.scale == "learned")

    @property
    def written_out(self) -> bool:
        """Whether scaled_dot_product_attention cannot say it."""
        return bool(
            self.softcap
            or self.sink
            or self.softmax != "plain"
            or self.weights
            or self.guard
            or self.scale in ("late", "learned", "cosine", "divide", "key", "both")
            or self.dropout
            or self.floor
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
    "packing": ("separate", "separate", "split", "unbind", "heads_first", "last"),
    "linear_bias": (True, True, False),
    "repeat": ("expand", "expand", "interleave", "index", "grouped", "sdpa"),
    "product": ("sdpa", "matmul", "matmul", "matmul", "bmm", "baddbmm", "einsum", "einsum"),
    "letters": ("bhqk", "bhqk", "hbqk", "bqhk"),
    "swap": (False, True),
    "key_transpose": ("T", "mT", "permute"),
    "scale": ("scores", "divide", "query", "key", "both", "late", "none", "learned", "cosine", "query"),
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
    "softmax": ("plain", "plain", "plain", "float", "exp", "exp_max", "log"),
    "guard": ("",) * 5 + ("nan_to_num", "where", "zero_rows"),
    "rotary": ("",) * 5 + ("half", "interleaved", "partial"),
    "norm": ("",) * 5 + ("rms", "layer"),
    "weights": (False,) * 7 + (True,),
    "project": (True, False),
    "dropout": (False, False, True),
}


_PLAIN_FOR_GROUPED = ("softcap", "sink", "masks", "bias", "weights", "scale", "packing", "guard")
_PLAIN_FOR_SDPA = ("softcap", "floor", "sink", "softmax", "weights", "guard", "dropout")


def draw(rng: random.Random) -> AttentionSpec:
    """A random attention whose fields fit together."""
    while True:
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
        spec = AttentionSpec(**fields)
        if spec.fits():
            return spec


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
