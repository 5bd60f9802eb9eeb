"""Attention that comes with torch itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .entry import Entry, Hidden, redraw

__all__ = ["ENTRIES"]

_PADDED = Hidden(padding="padding", drops=True)


class _Encoder(nn.Module):
    """nn.TransformerEncoder with a key-padding mask."""

    def __init__(self, **options: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


class _CausalEncoder(_Encoder):
    """The same as a decoder-only language model writes it: a square float mask."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.encoder(x, mask=mask, is_causal=True)


class _Decoder(nn.Module):
    """nn.TransformerDecoder: causal self-attention and cross-attention with a mask of the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(64, 4, 96, batch_first=True), 2)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        mask = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal=1)
        return self.decoder(x, memory, tgt_mask=mask, memory_key_padding_mask=padding)


class _Full(nn.Module):
    """nn.Transformer, time first as by default."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Transformer(64, 4, 1, 1, 96)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return self.model(x, memory)


class _Multihead(nn.Module):
    """nn.MultiheadAttention with a key-padding mask."""

    def __init__(self, *, weights: bool = False, **options: object) -> None:
        super().__init__()
        self.weights = weights
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True, **options)  # type: ignore[arg-type]

    def forward(self, x: Tensor, padding: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        output, weights = self.attention(x, x, x, key_padding_mask=padding, need_weights=self.weights)
        return (output, weights) if self.weights else output


class _CrossMultihead(nn.Module):
    """nn.MultiheadAttention over keys of another width, time first."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, kdim=64, vdim=64, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attention(x, y, y, need_weights=False)[0]


def _make(module: Callable[[], nn.Module]) -> Callable[[str], nn.Module]:
    return lambda _impl: redraw(module())


def _entry(name: str, module: Callable[[], nn.Module], inputs: Hidden, sites: int, **rest: object) -> Entry:
    return Entry(name=name, build=_make(module), inputs=inputs, sites=sites, impls=("own",), **rest)  # type: ignore[arg-type]


ENTRIES: tuple[Entry, ...] = (
    _entry("nn_transformer_encoder", _Encoder, _PADDED, 2, everyday=True),
    _entry("nn_transformer_encoder_pre_norm", lambda: _Encoder(norm_first=True), _PADDED, 2),
    _entry("nn_transformer_encoder_causal", _CausalEncoder, Hidden(), 2),
    _entry("nn_transformer_decoder", _Decoder, Hidden(("x", "memory"), padding="padding", drops=True), 4),
    _entry("nn_transformer", _Full, Hidden(("x", "memory"), time_first=True), 3),
    _entry("nn_multihead", _Multihead, _PADDED, 1),
    _entry("nn_multihead_weights", lambda: _Multihead(weights=True), _PADDED, 1),
    _entry("nn_multihead_bias_kv", lambda: _Multihead(add_bias_kv=True), _PADDED, 1),
    _entry("nn_multihead_zero", lambda: _Multihead(add_zero_attn=True), _PADDED, 1),
    _entry("nn_multihead_cross", _CrossMultihead, Hidden(("x", "y"), time_first=True), 1),
)
