"""Attention as people write it by hand, its rarer forms: other layouts, other softmaxes, other places of the mask."""

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


class _Layer(nn.Module):
    """Projections of a width of 64 and a few learned tensors that one form or another needs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.few = nn.Linear(_WIDTH, 2 * _SIZE)
        self.query = nn.Parameter(torch.rand(1, _HEADS, 1, _SIZE))
        self.memory = nn.Parameter(torch.rand(2, _HEADS, 3, _SIZE))
        self.heights, self.widths = (nn.Parameter(torch.rand(7, _SIZE)) for _ in range(2))
        self.gain = nn.Parameter(torch.rand(_HEADS, 1, 1) + 1)
        self.relative = nn.Parameter(torch.rand(16, _WIDTH))
        self.mix = nn.Linear(_HEADS, _HEADS, bias=False)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value as (B, N, S, H)."""
        q, k, v = (f(x).view(*x.shape[:-1], _HEADS, _SIZE).transpose(-2, -3) for f in (self.q, self.k, self.v))
        return q, k, v

    def join(self, heads: Tensor) -> Tensor:
        """(B, N, S, H) to the output, (B, S, N * H)."""
        return self.o(heads.transpose(-2, -3).flatten(-2))

    def grid(self, x: Tensor) -> Tensor:
        """Sixteen tokens of any number: a grid of four by four."""
        return F.adaptive_avg_pool1d(x.mT, 16).mT


class _Two(nn.Module):
    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(2))
        self.attend = attend


class _One(_Two):
    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + self.attend(layer, norm(x))
        return x


class _Masked(_Two):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + self.attend(layer, norm(x), mask)
        return x


def _local_blocks(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    """Blocks of four tokens that see themselves and their neighbours, an ellipsis over batch and blocks (LongT5)."""
    length = x.shape[1]
    padded = F.pad(x, (0, 0, 0, -length % 4))
    count = padded.shape[1] // 4

    def around(tokens: Tensor) -> Tensor:
        wide = F.pad(tokens, (0, 0) * (tokens.dim() - 2) + (1, 1))
        return torch.cat([wide[:, i : i + count] for i in range(3)], 2)

    q, k, v = (f(padded).view(x.shape[0], count, 4, _HEADS, _SIZE) for f in (layer.q, layer.k, layer.v))
    keep = around(F.pad(mask, (0, -length % 4)).view(x.shape[0], count, 4)).bool()[:, :, None, None]
    scores = torch.einsum("...qhd,...khd->...hqk", q, around(k)) * 0.25
    weights = torch.where(keep, scores, -1e10).softmax(-1)
    joined = torch.einsum("...hqk,...khd->...qhd", weights, around(v)).reshape(*padded.shape)
    return layer.o(joined[:, :length])


def _learned_query(layer: _Layer, x: Tensor) -> Tensor:
    """Pooling by one query that is a parameter, broadcast over the batch."""
    _, k, v = layer.heads(x)
    return layer.join((layer.query @ k.mT * 0.25).softmax(-1) @ v)


def _memory(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    """Learned keys and values in front, cosine similarity, a learned scale of each head (x-transformers)."""
    q, k, v = layer.heads(x)
    first = layer.memory[:, None].expand(-1, x.shape[0], -1, -1, -1)
    k, v = torch.cat((first[0], k), -2), torch.cat((first[1], v), -2)
    scores = torch.einsum("b h i d, b h j d -> b h i j", F.normalize(q, dim=-1), F.normalize(k, dim=-1)) * layer.gain
    keep = F.pad(mask.bool(), (3, 0), value=True)[:, None, None, :]
    weights = scores.masked_fill(~keep, -torch.finfo(scores.dtype).max).softmax(dim=-1, dtype=torch.float32)
    return layer.join(torch.einsum("b h i j, b h j d -> b h i d", weights, v))


def _split_positions(layer: _Layer, x: Tensor) -> Tensor:
    """Relative positions by row and column, added to scores viewed as (B, rows, columns, rows, columns) (SAM)."""
    tokens = layer.grid(x)
    q, k, v = (t.reshape(-1, 16, _SIZE) for t in layer.heads(tokens))
    place = torch.arange(4)[:, None] - torch.arange(4)[None, :] + 3
    square = q.reshape(-1, 4, 4, _SIZE)
    rows = torch.einsum("bhwc,hkc->bhwk", square, layer.heights[place])
    columns = torch.einsum("bhwc,wkc->bhwk", square, layer.widths[place])
    scores = (q * 0.25 @ k.mT).view(-1, 4, 4, 4, 4) + rows[..., :, None] + columns[..., None, :]
    heads = scores.view(-1, 16, 16).softmax(-1) @ v
    return layer.join(heads.view(-1, _HEADS, 16, _SIZE)).mean(1, keepdim=True)


def _windows_apart(layer: _Layer, x: Tensor) -> Tensor:
    """Windows as an axis of their own: products of five axes."""
    q, k, v = layer.heads(layer.grid(x).unflatten(1, (4, 4)))
    return layer.join((q @ k.mT * 0.25).softmax(-1) @ v).flatten(1, 2).mean(1, keepdim=True)


def _shared_keys(layer: _Layer, x: Tensor) -> Tensor:
    """One key and value head, shared by the letters of an einsum, scores less their detached maximum."""
    q, _, _ = layer.heads(x)
    k, v = layer.few(x).chunk(2, -1)
    scores = torch.einsum("b h i d, b j d -> b h i j", q * 0.25, k)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    scores = scores.masked_fill(later, -torch.finfo(scores.dtype).max)
    scores = scores - scores.amax(-1, keepdim=True).detach()
    return layer.join(torch.einsum("b h i j, b j d -> b h i d", scores.softmax(-1), v))


def _group_letters(layer: _Layer, x: Tensor) -> Tensor:
    """Groups of heads as a letter of their own: bqgrd,bkgd->bgrqk."""
    q = layer.q(x).view(*x.shape[:2], 2, 2, _SIZE)
    k, v = layer.few(x).view(*x.shape[:2], 2, _SIZE), layer.k(x).view(*x.shape[:2], 2, 2 * _SIZE)[..., :_SIZE]
    scores = torch.einsum("bqgrd,bkgd->bgrqk", q, k) * 0.25
    scores = scores + torch.full((x.shape[1], x.shape[1]), -math.inf).triu(1)
    return layer.o(torch.einsum("bgrqk,bkgd->bqgrd", scores.softmax(-1), v).flatten(2))


def _weights_on_the_right(layer: _Layer, x: Tensor) -> Tensor:
    """Channels first, the scale on both sides: bct,bcs->bts and bts,bcs->bct (guided diffusion)."""
    q, k, v = (f(x).mT.reshape(-1, _SIZE, x.shape[1]) for f in (layer.q, layer.k, layer.v))
    weights = torch.einsum("bct,bcs->bts", q * 0.5, k * 0.5).float().softmax(-1)
    return layer.o(torch.einsum("bts,bcs->bct", weights, v).reshape(x.shape[0], _WIDTH, -1).mT)


def _queries_last(layer: _Layer, x: Tensor) -> Tensor:
    """Keys times queries, softmax over the rows (non-local blocks)."""
    q, k, v = (f(x).mT for f in (layer.q, layer.k, layer.v))
    return layer.o(torch.bmm(v, (torch.bmm(k.mT, q) / 8).softmax(dim=1)).mT)


def _low_fill(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    keep = torch.arange(x.shape[1])[None] < mask.sum(-1)[:, None]
    return layer.join((q @ k.mT / 4).masked_fill(~keep[:, None, None], -1e4).softmax(-1) @ v)


def _blanked(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    """The mask before the softmax and after it (ESPnet)."""
    q, k, v = layer.heads(x)
    gone = mask[:, None, None].eq(0)
    scores = (q @ k.mT / 4).masked_fill(gone, torch.finfo(torch.float32).min)
    return layer.join(scores.softmax(-1).masked_fill(gone, 0.0) @ v)


def _guarded(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    scores = (q @ k.mT / 4).masked_fill(mask[:, None, None] == 0, -math.inf)
    return layer.join(torch.nan_to_num(scores.softmax(-1)) @ v)


def _late_sum(layer: _Layer, x: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    scores = q @ k.mT / 4
    powers = torch.exp(scores - scores.amax(-1, keepdim=True))
    return layer.join(powers @ v / powers.sum(-1, keepdim=True))


def _logarithmic(layer: _Layer, x: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    scores = q @ k.mT / 4
    return layer.join(torch.exp(scores - torch.logsumexp(scores, -1, keepdim=True)) @ v)


def _zero_in_front(layer: _Layer, x: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    scores = q @ k.mT / 4
    return layer.join(torch.cat([torch.zeros_like(scores[..., :1]), scores], -1).softmax(-1)[..., 1:] @ v)


def _gains(layer: _Layer, x: Tensor) -> Tensor:
    """A learned divisor of the scores and a learned gain of the weights, each one number a head."""
    q, k, v = layer.heads(x)
    return layer.join((q @ k.mT / layer.gain.abs().clamp(min=0.5)).softmax(-1) * layer.gain @ v)


def _segments(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    segment = mask.cumsum(-1) // 3
    same = segment[:, None, :, None] == segment[:, None, None, :]
    return layer.join((q @ k.mT / 4).masked_fill(same.logical_not(), -math.inf).softmax(-1) @ v)


def _both_positions(layer: _Layer, x: Tensor) -> Tensor:
    """Content to position and position to content (DeBERTa)."""
    q, k, v = layer.heads(x)
    place = torch.arange(x.shape[1])
    index = ((place[:, None] - place[None]).clamp(-8, 7) + 8)[None, None].expand(x.shape[0], _HEADS, -1, -1)
    keys, queries = (f(layer.relative).view(16, _HEADS, _SIZE).transpose(0, 1) for f in (layer.k, layer.q))
    c2p = torch.gather(q @ keys.mT, -1, index)
    p2c = torch.gather(k @ queries.mT, -1, index).mT
    return layer.join(((q @ k.mT + c2p + p2c) / math.sqrt(48)).softmax(-1) @ v)


def _mixed_before(layer: _Layer, x: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    scores = layer.mix((q @ k.mT / 4).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return layer.join(scores.softmax(-1) @ v)


def _renormalised(layer: _Layer, x: Tensor, mask: Tensor) -> Tensor:
    q, k, v = layer.heads(x)
    weights = (q @ k.mT / 4).softmax(-1) * mask[:, None, None]
    return layer.join(weights / (weights.sum(-1, keepdim=True) + 1e-13) @ v)


_MIXED = {"no-score-product": "the heads' scores are mixed before the softmax: no attention operator computes that"}
_AGAIN = {"weights-changed": "the mask that the weights are multiplied by holds integers, which may be any numbers"}
_TURNED = "an Einsum is one node, which onnxruntime takes apart itself; here its transposes are nodes"
_FORMS: Mapping[str, tuple[type[_Two], Attend, dict[str, Any]]] = {
    "learned_query": (_One, _learned_query, {"everyday": True}),
    "memory": (_Masked, _memory, {}),
    "split_positions": (_One, _split_positions, {}),
    "windows_apart": (_One, _windows_apart, {}),
    "local_blocks": (_Masked, _local_blocks, {"grows": _TURNED}),
    "shared_keys": (_One, _shared_keys, {"grouped": True}),
    "group_letters": (_One, _group_letters, {"grouped": True}),
    "weights_on_the_right": (_One, _weights_on_the_right, {}),
    "queries_last": (_One, _queries_last, {}),
    "low_fill": (_Masked, _low_fill, {}),
    "blanked": (_Masked, _blanked, {}),
    "guarded": (_Masked, _guarded, {}),
    "late_sum": (_One, _late_sum, {}),
    "logarithmic": (_One, _logarithmic, {}),
    "zero_in_front": (_One, _zero_in_front, {}),
    "gains": (_One, _gains, {}),
    "segments": (_Masked, _segments, {}),
    "both_positions": (_One, _both_positions, {}),
    "mixed_before": (_One, _mixed_before, {"declined": _MIXED}),
    "renormalised": (_Masked, _renormalised, {"declined": _AGAIN}),
}


def _entry(name: str, stack: type[_Two], attend: Attend, options: Mapping[str, Any]) -> Entry:
    rest = dict(options)
    rest.setdefault("inputs", Hidden(padding="mask") if stack is _Masked else Hidden())
    return Entry(name=f"hand_{name}", build=lambda _impl: redraw(stack(attend)), impls=("own",), **rest)


ENTRIES: tuple[Entry, ...] = tuple(_entry(name, *what) for name, what in _FORMS.items())
