"""The golden models: small, two layers, weights drawn anew so that no default hides an error, seeds fixed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deployml.runtime.target import TargetName

__all__ = ["MODELS", "Golden"]

_TOKENS = ("input_ids:int64[batch,sequence]", "attention_mask:int64[batch,sequence]")
_HIDDEN = ("x:float32[batch,sequence,32]",)
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
}


@dataclass(frozen=True)
class Golden:
    """One model: how to build it, its inputs as the command line takes them, what it is made for."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    target: TargetName = "cpu"

    def module(self) -> nn.Module:
        """The model in eval mode, every parameter drawn from a normal distribution of 0.15."""
        torch.manual_seed(0)
        built = self.build().eval()
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.15)
        return built


def _hf(model: str, config: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**settings))

    return build


class _Layers(nn.Module):
    """Two residual layers of one attention with pre-norm."""

    def __init__(self, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(attention() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + layer(norm(x))
        return x


class _CausalByHand(nn.Module):
    """nanoGPT's attention before it used scaled_dot_product_attention: one projection, a triangle as buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.register_buffer("bias", torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (t.view(batch, length, 4, 8).transpose(1, 2) for t in self.c_attn(x).split(width, dim=2))
        scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        scores = scores.masked_fill(self.bias[:, :, :length, :length] == 0, float("-inf"))
        merged = (scores.softmax(dim=-1) @ v).transpose(1, 2).contiguous().view(batch, length, width)
        return self.c_proj(merged)


class _Einsum(nn.Module):
    """Attention as sums over letters."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (4, 8)) for f in (self.q, self.k, self.v))
        weights = (torch.einsum("bihd,bjhd->bhij", q, k) / 8**0.5).softmax(-1)
        return self.o(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class _Packed(nn.Module):
    """One projection for all three, taken apart along a new axis, as timm does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        joined = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(joined.transpose(1, 2).reshape(batch, length, width))


def _torch_encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


_GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64, "use_cache": False}
_MIXTRAL = {**_TEXT, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "use_cache": False}
_GEMMA2 = {  # scores capped, every other layer looks back four positions
    **_TEXT,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "sliding_window": 4,
    "use_cache": False,
    "attn_implementation": "eager",
}
_T5 = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": 50,
    "use_cache": False,
}
_VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
_BERT = _hf("BertModel", "BertConfig", **_TEXT)

MODELS: tuple[Golden, ...] = (
    Golden("bert", _BERT, _TOKENS),
    Golden("bert_portable", _BERT, _TOKENS, target="portable"),
    Golden(
        "llama",
        _hf("LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2, use_cache=False, **_TEXT),
        _TOKENS,
    ),
    Golden("mixtral", _hf("MixtralForCausalLM", "MixtralConfig", **_MIXTRAL), _TOKENS),
    Golden("gemma2", _hf("Gemma2ForCausalLM", "Gemma2Config", **_GEMMA2), _TOKENS),
    Golden("gpt2", _hf("GPT2LMHeadModel", "GPT2Config", **_GPT2), _TOKENS),
    Golden("t5_encoder", _hf("T5EncoderModel", "T5Config", **_T5), _TOKENS),
    Golden(
        "vit",
        _hf("ViTModel", "ViTConfig", image_size=16, patch_size=4, **_VIT),
        ("pixel_values:float32[batch,3,16,16]",),
    ),
    Golden("swin", _hf("SwinModel", "SwinConfig", **_SWIN), ("pixel_values:float32[batch,3,32,32]",)),
    Golden("torch_encoder", _torch_encoder, ("src:float32[batch,sequence,32]",)),
    Golden("causal_by_hand", lambda: _Layers(_CausalByHand), _HIDDEN),
    Golden("einsum", lambda: _Layers(_Einsum), _HIDDEN),
    Golden("packed_qkv", lambda: _Layers(_Packed), _HIDDEN),
)
