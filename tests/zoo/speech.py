"""Speech models from transformers, tiny."""

from __future__ import annotations

from typing import Any

from .entry import Audio, Entry
from .hf import hf

__all__ = ["ENTRIES"]

_CONV: dict[str, Any] = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=32,
    conv_dim=[32, 32],
    conv_stride=[5, 2],
    conv_kernel=[10, 3],
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    mask_time_prob=0.0,
    mask_feature_prob=0.0,
    apply_spec_augment=False,
)

ENTRIES: tuple[Entry, ...] = (
    hf("wav2vec2", "Wav2Vec2Model", "Wav2Vec2Config", Audio(), _CONV),
    hf(
        "wav2vec2_nomask", "Wav2Vec2Model", "Wav2Vec2Config", Audio(mask=False), dict(_CONV, do_stable_layer_norm=False)
    ),
    hf(
        "wav2vec2_conformer",
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        Audio(mask=False),
        dict(_CONV, position_embeddings_type="relative", conv_depthwise_kernel_size=7),
    ),
    hf(
        "wav2vec2_conformer_rotary",
        "Wav2Vec2ConformerModel",
        "Wav2Vec2ConformerConfig",
        Audio(mask=False),
        dict(_CONV, position_embeddings_type="rotary", conv_depthwise_kernel_size=7),
    ),
    hf("hubert", "HubertModel", "HubertConfig", Audio(), _CONV),
    hf("wavlm", "WavLMModel", "WavLMConfig", Audio(mask=False), dict(_CONV, num_buckets=16, max_bucket_distance=32)),
    hf("sew", "SEWModel", "SEWConfig", Audio(mask=False), dict(_CONV, squeeze_factor=2)),
    hf("data2vec_audio", "Data2VecAudioModel", "Data2VecAudioConfig", Audio(mask=False), _CONV),
)
