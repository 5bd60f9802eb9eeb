"""Vision and vision-and-language models from transformers, tiny."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .entry import Case, Entry, Pixels, Sample, Tokens, redraw
from .hf import TEXT, hf

__all__ = ["ENTRIES"]

_VIT: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
)
_IN = Pixels()
_TOWER = {**_VIT, "projection_dim": 64}
_SWIN: dict[str, Any] = dict(
    image_size=32, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, drop_path_rate=0.0
)
_SEGFORMER: dict[str, Any] = dict(
    num_encoder_blocks=2,
    depths=[1, 1],
    sr_ratios=[2, 1],
    hidden_sizes=[32, 64],
    num_attention_heads=[2, 4],
    patch_sizes=[7, 3],
    strides=[4, 2],
    mlp_ratios=[2, 2],
    decoder_hidden_size=32,
)
_SAM: dict[str, Any] = dict(
    hidden_size=64,
    output_channels=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    image_size=32,
    patch_size=4,
    window_size=3,
    global_attn_indexes=[1],
    mlp_dim=96,
    num_pos_feats=8,
)


@dataclass(frozen=True)
class _Both:
    """Text and an image in one call."""

    mask: bool = True
    paddings = ("none", "right", "left", "holes")

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {**Tokens().axes, "pixel_values": {0: "batch"}}

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        text = Tokens().sample(case, generator)
        image = torch.randn(case.batch, 3, 32, 32, generator=generator)
        return Sample({**text.kwargs, "pixel_values": image}, text.keeps)


def _detr(impl: str) -> nn.Module:
    import transformers
    from transformers.models.detr.modeling_detr import DetrEncoderLayer

    settings = transformers.DetrConfig(
        d_model=64,
        encoder_attention_heads=4,
        encoder_ffn_dim=96,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=transformers.ResNetConfig(),
    )
    settings._attn_implementation = impl

    class Encoder(nn.Module):
        """Two layers over flattened features, positions added to queries and keys."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(DetrEncoderLayer(settings) for _ in range(2))

        def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x, None, positions)
            return x

    return redraw(Encoder())


@dataclass(frozen=True)
class _Flattened:
    paddings = ("none",)

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        return {name: {0: "batch", 1: "sequence"} for name in ("x", "positions")}

    def sample(self, case: Case, generator: torch.Generator) -> Sample:
        size = (case.batch, case.length, 64)
        return Sample({n: torch.randn(size, generator=generator) for n in ("x", "positions")})


ENTRIES: tuple[Entry, ...] = (
    hf("vit", "ViTModel", "ViTConfig", _IN, _VIT, everyday=True),
    hf("deit", "DeiTModel", "DeiTConfig", _IN, _VIT),
    hf("beit", "BeitModel", "BeitConfig", _IN, dict(_VIT, use_relative_position_bias=True, drop_path_rate=0.0)),
    hf(
        "data2vec_vision",
        "Data2VecVisionModel",
        "Data2VecVisionConfig",
        _IN,
        dict(_VIT, use_shared_relative_position_bias=True, drop_path_rate=0.0),
    ),
    hf("dinov2", "Dinov2Model", "Dinov2Config", _IN, dict(_VIT, mlp_ratio=2)),
    hf("dinov3_vit", "DINOv3ViTModel", "DINOv3ViTConfig", _IN, dict(_VIT, num_register_tokens=2)),
    hf("clip_vision", "CLIPVisionModel", "CLIPVisionConfig", _IN, _TOWER),
    hf("clip_text", "CLIPTextModel", "CLIPTextConfig", Tokens(), dict(TEXT, eos_token_id=2)),
    hf("siglip_vision", "SiglipVisionModel", "SiglipVisionConfig", _IN, _VIT, sites=3),
    hf("siglip_text", "SiglipTextModel", "SiglipTextConfig", Tokens(), dict(TEXT, projection_size=64)),
    hf("swin", "SwinModel", "SwinConfig", _IN, _SWIN, sites=4),
    hf("swinv2", "Swinv2Model", "Swinv2Config", _IN, _SWIN, sites=4),
    hf("donut_swin", "DonutSwinModel", "DonutSwinConfig", _IN, _SWIN, sites=4),
    hf("segformer", "SegformerForSemanticSegmentation", "SegformerConfig", _IN, _SEGFORMER),
    hf(
        "pvt",
        "PvtModel",
        "PvtConfig",
        _IN,
        dict(
            image_size=32,
            num_encoder_blocks=2,
            depths=[1, 1],
            sequence_reduction_ratios=[2, 1],
            hidden_sizes=[32, 64],
            patch_sizes=[4, 2],
            strides=[4, 2],
            num_attention_heads=[2, 4],
            mlp_ratios=[2, 2],
            drop_path_rate=0.0,
        ),
    ),
    hf("sam_vision", "SamVisionModel", "SamVisionConfig", _IN, _SAM),
    hf("yolos", "YolosModel", "YolosConfig", _IN, dict(_VIT, image_size=[32, 32], num_detection_tokens=4)),
    hf("vit_msn", "ViTMSNModel", "ViTMSNConfig", _IN, _VIT),
    hf("ijepa", "IJepaModel", "IJepaConfig", _IN, _VIT),
    hf("aimv2", "Aimv2VisionModel", "Aimv2VisionConfig", _IN, dict(_VIT, use_head=False)),
    hf(
        "vilt",
        "ViltModel",
        "ViltConfig",
        _Both(),
        dict(TEXT, **_VIT, max_image_length=-1),
        impls=("eager",),
        refused="decides in Python by the values of a tensor",
    ),
    hf(
        "blip_text",
        "BlipTextModel",
        "BlipTextConfig",
        Tokens(constants={"is_decoder": False}),
        dict(TEXT, encoder_hidden_size=64, is_decoder=False, use_cache=False),
        impls=("eager", "sdpa"),
    ),
    hf(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        _Both(),
        dict(text_config=dict(TEXT, projection_dim=64, eos_token_id=2), vision_config=_TOWER, projection_dim=64),
        sites=4,
    ),
    Entry(name="detr_encoder", build=_detr, inputs=_Flattened()),
)
