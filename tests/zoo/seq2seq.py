"""Encoder-decoders from transformers, tiny."""

from __future__ import annotations

from typing import Any

from .entry import Entry, Features, Seq2Seq, Tokens
from .hf import hf

__all__ = ["ENTRIES"]

_BART: dict[str, Any] = dict(
    d_model=64,
    encoder_layers=2,
    decoder_layers=2,
    encoder_attention_heads=4,
    decoder_attention_heads=4,
    encoder_ffn_dim=96,
    decoder_ffn_dim=96,
    vocab_size=100,
    max_position_embeddings=64,
    use_cache=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    decoder_start_token_id=1,
    forced_eos_token_id=2,
)
_T5: dict[str, Any] = dict(
    d_model=64,
    d_kv=16,
    d_ff=96,
    num_layers=2,
    num_heads=4,
    vocab_size=100,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=16,
    use_cache=False,
    decoder_start_token_id=0,
)
_WHISPER: dict[str, Any] = dict(
    _BART, num_mel_bins=16, max_source_positions=20, max_target_positions=64, decoder_start_token_id=1
)
_IN = Seq2Seq()

ENTRIES: tuple[Entry, ...] = (
    hf("t5", "T5ForConditionalGeneration", "T5Config", _IN, _T5, sites=6, everyday=True),
    hf("t5_encoder", "T5EncoderModel", "T5Config", Tokens(), _T5),
    hf("mt5", "MT5ForConditionalGeneration", "MT5Config", _IN, dict(_T5, feed_forward_proj="gated-gelu"), sites=6),
    hf("umt5", "UMT5ForConditionalGeneration", "UMT5Config", _IN, _T5, sites=6),
    hf("bart", "BartForConditionalGeneration", "BartConfig", _IN, _BART, sites=6),
    hf("mbart", "MBartForConditionalGeneration", "MBartConfig", _IN, _BART, sites=6),
    hf("pegasus", "PegasusForConditionalGeneration", "PegasusConfig", _IN, _BART, sites=6),
    hf("marian", "MarianMTModel", "MarianConfig", _IN, _BART, sites=6),
    hf("m2m_100", "M2M100ForConditionalGeneration", "M2M100Config", _IN, _BART, sites=6),
    hf("blenderbot", "BlenderbotForConditionalGeneration", "BlenderbotConfig", _IN, _BART, sites=6),
    hf(
        "led",
        "LEDForConditionalGeneration",
        "LEDConfig",
        _IN,
        dict(
            {k: v for k, v in _BART.items() if k != "max_position_embeddings"},
            attention_window=4,
            max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64,
        ),
        sites=6,
        declined={
            "chunked-scores": "the scores of overlapping chunks are pasted into one band: a dense kernel would compute "
            "them all, which is what this model avoids"
        },
    ),
    hf("whisper", "WhisperForConditionalGeneration", "WhisperConfig", Features(), _WHISPER, sites=6),
    hf("whisper_encoder", "WhisperModel", "WhisperConfig", Features(decoder=False), _WHISPER, part="encoder"),
)
