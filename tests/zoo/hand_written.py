"""Attention as people write it by hand, two layers each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, Hidden, redraw

__all__ = ["ENTRIES"]

_HEADS, _SIZE, _WIDTH = 4, 16, 64
Attend = Callable[..., Tensor]


class _Projections(nn.Module):
    """Four projections and whatever the attention itself keeps."""

    def __init__(self, kv_heads: int) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.k, self.v = (nn.Linear(_WIDTH, kv_heads * _SIZE) for _ in range(2))
        self.packed = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.table = nn.Embedding(32, _HEADS)
        self.logit_scale = nn.Parameter(torch.rand(_HEADS, 1, 1))
        self.mix = nn.Linear(_HEADS, _HEADS, bias=False)
        self.sink = nn.Parameter(torch.zeros(_HEADS))
        self.register_buffer("tril", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def split(self, projection: nn.Module, x: Tensor) -> Tensor:
        """(B, S, N * H) to (B, N, S, H)."""
        return projection(x).view(x.shape[0], x.shape[1], -1, _SIZE).transpose(1, 2)


class _Stack(nn.Module):
    """Two residual layers of one attention function over (B, S, 64), with its further arguments."""

    def __init__(self, attend: Attend, kv_heads: int = _HEADS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Projections(kv_heads) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(2))
        self.attend = attend


class _One(_Stack):
    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + self.attend(layer, norm(x))
        return x


class _Masked(_Stack):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + self.attend(layer, norm(x), mask)
        return x


class _Cross(_Stack):
    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + self.attend(layer, norm(x), y, mask)
        return x


def _joined(layer: _Projections, heads: Tensor) -> Tensor:
    return layer.o(heads.transpose(1, 2).flatten(2))


def _heads(layer: _Projections, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return layer.split(layer.q, x), layer.split(layer.k, x), layer.split(layer.v, x)


def _einsum(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = (f(x).view(*x.shape[:2], _HEADS, _SIZE) for f in (layer.q, layer.k, layer.v))
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(_SIZE)).softmax(-1)
    return layer.o(torch.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*x.shape))


def _einsum_letters(layer: _Projections, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (f(x).view(*x.shape[:2], _HEADS, _SIZE) for f in (layer.q, layer.k, layer.v))
    scores = torch.einsum("nlhe,nshe->nlsh", q * _SIZE**-0.5, k)
    scores = scores.masked_fill((mask == 0)[:, None, :, None], -1e9)
    return layer.o(torch.einsum("nlsh,nshe->nlhe", scores.softmax(2), v).reshape(*x.shape))


def _bmm(layer: _Projections, x: Tensor, mask: Tensor) -> Tensor:
    batch, length, _ = x.shape

    def fold(y: Tensor) -> Tensor:
        return y.view(batch, length, _HEADS, _SIZE).transpose(1, 2).reshape(batch * _HEADS, length, _SIZE)

    q, k, v = fold(layer.q(x)) * _SIZE**-0.5, fold(layer.k(x)), fold(layer.v(x))
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, _HEADS, length, length)
    scores = scores.masked_fill(mask[:, None, None, :] == 0, float("-inf")).view(batch * _HEADS, length, length)
    output = torch.bmm(scores.softmax(-1), v)
    return layer.o(output.view(batch, _HEADS, length, _SIZE).transpose(1, 2).reshape(batch, length, _WIDTH))


def _nano(layer: _Projections, x: Tensor) -> Tensor:
    batch, length, width = x.shape
    q, k, v = (
        y.view(batch, length, _HEADS, width // _HEADS).transpose(1, 2) for y in layer.packed(x).split(width, dim=2)
    )
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    scores = scores.masked_fill(layer.tril[:, :, :length, :length] == 0, float("-inf"))
    return layer.o((F.softmax(scores, dim=-1) @ v).transpose(1, 2).contiguous().view(batch, length, width))


def _packed(order: str) -> Attend:
    def attend(layer: _Projections, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        packed = layer.packed(x)
        if order == "3hd":  # timm
            q, k, v = packed.reshape(batch, length, 3, _HEADS, _SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        elif order == "h3d":  # GPT-NeoX
            q, k, v = packed.view(batch, length, _HEADS, 3 * _SIZE).transpose(1, 2).chunk(3, dim=-1)
        else:  # hd3
            q, k, v = packed.view(batch, length, _HEADS, _SIZE, 3).transpose(1, 2).unbind(-1)
        scores = (q * _SIZE**-0.5) @ k.transpose(-2, -1)
        return layer.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1))

    return attend


def _time_first(layer: _Projections, x: Tensor) -> Tensor:
    length, batch, _ = x.shape

    def fold(y: Tensor) -> Tensor:
        return y.view(length, batch * _HEADS, _SIZE).transpose(0, 1)

    q, k, v = fold(layer.q(x) * _SIZE**-0.5), fold(layer.k(x)), fold(layer.v(x))
    weights = torch.softmax(torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2)), -1)
    return layer.o(torch.bmm(weights, v).transpose(0, 1).reshape(length, batch, -1))


def _softcap(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    scores = torch.tanh(q @ k.mT * _SIZE**-0.5 / 20.0) * 20.0
    scores = scores + torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf")), 1)
    return _joined(layer, scores.softmax(-1) @ v)


def _alibi(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625]).view(1, _HEADS, 1, 1)
    place = torch.arange(x.shape[1])
    scores = q @ k.mT * _SIZE**-0.5 + slopes * (place[None, :] - place[:, None])
    keep = torch.ones(x.shape[1], x.shape[1]).tril().bool()
    return _joined(layer, scores.masked_fill(~keep, torch.finfo(scores.dtype).min).softmax(-1) @ v)


def _cross(layer: _Projections, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.split(layer.q, x), layer.split(layer.k, y), layer.split(layer.v, y)
    scores = (q @ k.mT / 4.0).float() + (1.0 - mask[:, None, None, :]) * -10000.0
    return _joined(layer, F.dropout(scores.softmax(-1), 0.1, layer.training) @ v)


def _grouped(layer: _Projections, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    k, v = (y.repeat_interleave(2, dim=1) for y in (k, v))
    length = x.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    scores = (q @ k.mT * _SIZE**-0.5).masked_fill(~(causal & mask[:, None, None, :].bool()), -1e30)
    return _joined(layer, scores.softmax(-1) @ v)


def _multi_query(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    scores = q @ k.mT * _SIZE**-0.5
    length = x.shape[1]
    scores = scores + torch.full((length, length), float("-inf")).triu(1)
    return _joined(layer, scores.softmax(-1) @ v)


def _exp_over_sum(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    scores = q @ k.mT / 4
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return _joined(layer, powers / powers.sum(-1, keepdim=True) @ v)


def _off_by_one(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    scores = q @ k.mT / 4
    top = scores.amax(-1, keepdim=True).clamp(min=0)
    powers = torch.exp(scores - top)
    return _joined(layer, powers / (powers.sum(-1, keepdim=True) + torch.exp(-top)) @ v)


def _sinks(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    scores = q @ k.mT / 4
    sink = layer.sink.view(1, _HEADS, 1, 1).expand(x.shape[0], -1, x.shape[1], 1)
    return _joined(layer, torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v)


def _cosine(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT
    return _joined(layer, (scores * layer.logit_scale.clamp(max=4.6).exp()).softmax(-1) @ v)


def _buckets(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    place = torch.arange(x.shape[1])
    index = (place[None, :] - place[:, None]).clamp(-15, 15) + 15
    bias = layer.table(index).permute(2, 0, 1)[None]
    return _joined(layer, (q @ k.mT / 4 + bias).softmax(-1) @ v)


def _window(layer: _Projections, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    place = torch.arange(x.shape[1])
    near = (place[None, :] - place[:, None]).abs() <= 2
    keep = near & mask[:, None, None, :].bool()
    weights = (q @ k.mT / 4).masked_fill(~keep, float("-inf")).softmax(-1)
    return _joined(layer, torch.where(weights.isnan(), 0.0, weights) @ v)


def _relative_shift(layer: _Projections, x: Tensor) -> Tensor:
    """Transformer-XL: position scores shifted into place by padding and re-viewing."""
    q, k, v = _heads(layer, x)
    batch, length, _ = x.shape
    place = torch.arange(length - 1, -length, -1.0)[:, None] / torch.arange(1, _WIDTH + 1)
    r = layer.split(layer.q, torch.sin(place)[None])
    wide = q @ r.mT
    padded = F.pad(wide, (1, 0)).view(batch, _HEADS, -1, length)[:, :, 1:]
    shifted = padded.reshape(batch, _HEADS, length, -1)[..., :length]
    return _joined(layer, ((q @ k.mT + shifted) * _SIZE**-0.5).softmax(-1) @ v)


def _sdpa(layer: _Projections, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    return _joined(layer, F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool()))


def _sdpa_grouped(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    return _joined(layer, F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))


def _prefix(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    place = torch.arange(x.shape[1])
    keep = (place[None, :] <= place[:, None]) | (place[None, :] < 3)
    return _joined(layer, (q @ k.mT / 4).masked_fill(~keep, float("-inf")).softmax(-1) @ v)


def _key_transposed(layer: _Projections, x: Tensor) -> Tensor:
    """minGPT-like: keys are kept as (B, N, H, S)."""
    batch, length, _ = x.shape
    q, v = layer.split(layer.q, x), layer.split(layer.v, x)
    k = layer.k(x).view(batch, length, _HEADS, _SIZE).permute(0, 2, 3, 1)
    return _joined(layer, (torch.matmul(q, k) / 4).softmax(-1) @ v)


def _talking_heads(layer: _Projections, x: Tensor) -> Tensor:
    q, k, v = _heads(layer, x)
    weights = (q @ k.mT / 4).softmax(-1)
    weights = layer.mix(weights.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return _joined(layer, weights @ v)


def _channels_first(layer: _Projections, x: Tensor) -> Tensor:
    """Vision attention over (B, C, S), as in diffusion decoders: softmax(q^T k), value times its transpose."""
    q, k, v = (f(x).transpose(1, 2) for f in (layer.q, layer.k, layer.v))
    weights = torch.bmm(q.transpose(1, 2) * _WIDTH**-0.5, k).softmax(2)
    return layer.o(torch.bmm(v, weights.transpose(1, 2)).transpose(1, 2))


_MASK = Hidden(padding="mask")
_TALKING = {
    "weights-changed": "the heads' weights are mixed after the softmax: no attention operator computes that; "
    "the plain operators stay"
}
_SHAPES: Mapping[str, tuple[type[_Stack], Attend, dict[str, Any]]] = {
    "einsum": (_One, _einsum, {"everyday": True}),
    "einsum_letters": (_Masked, _einsum_letters, {}),
    "bmm": (_Masked, _bmm, {}),
    "nano_gpt": (_One, _nano, {"everyday": True}),
    "packed_3hd": (_One, _packed("3hd"), {}),
    "packed_h3d": (_One, _packed("h3d"), {}),
    "packed_hd3": (_One, _packed("hd3"), {}),
    "time_first": (_One, _time_first, {"inputs": Hidden(time_first=True)}),
    "softcap": (_One, _softcap, {}),
    "alibi": (_One, _alibi, {}),
    "cross": (_Cross, _cross, {"inputs": Hidden(("x", "y"), padding="mask")}),
    "grouped": (_Masked, _grouped, {"kv_heads": 2, "grouped": True}),
    "multi_query": (_One, _multi_query, {"kv_heads": 1, "grouped": True}),
    "exp_over_sum": (_One, _exp_over_sum, {}),
    "off_by_one": (_One, _off_by_one, {}),
    "sinks": (_One, _sinks, {}),
    "cosine": (_One, _cosine, {}),
    "buckets": (_One, _buckets, {}),
    "window": (_Masked, _window, {}),
    "relative_shift": (_One, _relative_shift, {}),
    "sdpa": (_Masked, _sdpa, {}),
    "sdpa_grouped": (_One, _sdpa_grouped, {"kv_heads": 2, "grouped": True}),
    "prefix": (_One, _prefix, {}),
    "key_transposed": (_One, _key_transposed, {}),
    "channels_first": (_One, _channels_first, {}),
    "talking_heads": (_One, _talking_heads, {"declined": _TALKING}),
}


def _entry(name: str, stack: type[_Stack], attend: Attend, options: Mapping[str, Any]) -> Entry:
    rest = dict(options)
    kv_heads = rest.pop("kv_heads", _HEADS)
    rest.setdefault("inputs", _MASK if stack is _Masked else Hidden())

    def build(_impl: str) -> nn.Module:
        return redraw(stack(attend, kv_heads))

    return Entry(name=f"hand_{name}", build=build, impls=("own",), **rest)


ENTRIES: tuple[Entry, ...] = tuple(_entry(name, *what) for name, what in _SHAPES.items())
