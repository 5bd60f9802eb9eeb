"""Encoders of text from transformers, tiny."""

from __future__ import annotations

from .entry import Entry, Tokens
from .hf import TEXT, hf

__all__ = ["ENTRIES"]

_TYPED = Tokens(extra=("token_type_ids",))
_PLAIN = Tokens()
_DEBERTA = dict(
    TEXT,
    relative_attention=True,
    pos_att_type=["c2p", "p2c"],
    position_buckets=4,
    max_relative_positions=8,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    position_biased_input=False,
)

ENTRIES: tuple[Entry, ...] = (
    hf("bert", "BertModel", "BertConfig", _TYPED, TEXT, everyday=True),
    hf("roberta", "RobertaModel", "RobertaConfig", _PLAIN, TEXT),
    hf("xlm_roberta", "XLMRobertaForTokenClassification", "XLMRobertaConfig", _PLAIN, TEXT),
    hf("camembert", "CamembertModel", "CamembertConfig", _PLAIN, TEXT),
    hf("electra", "ElectraModel", "ElectraConfig", _TYPED, dict(TEXT, embedding_size=32)),
    hf("albert", "AlbertModel", "AlbertConfig", _TYPED, dict(TEXT, embedding_size=32)),
    hf("mpnet", "MPNetModel", "MPNetConfig", _PLAIN, TEXT),
    hf("deberta", "DebertaModel", "DebertaConfig", _PLAIN, {**_DEBERTA, "norm_rel_ebd": "none"}),
    hf("deberta_v2", "DebertaV2Model", "DebertaV2Config", _PLAIN, _DEBERTA),
    hf("roformer", "RoFormerModel", "RoFormerConfig", _TYPED, dict(TEXT, embedding_size=64)),
    hf(
        "modernbert",
        "ModernBertModel",
        "ModernBertConfig",
        _PLAIN,
        dict(TEXT, local_attention=4, global_attn_every_n_layers=2, pad_token_id=0),
    ),
    hf(
        "distilbert",
        "DistilBertModel",
        "DistilBertConfig",
        _PLAIN,
        dict(dim=64, hidden_dim=96, n_layers=2, n_heads=4, vocab_size=100, max_position_embeddings=64),
    ),
    hf(
        "longformer",
        "LongformerModel",
        "LongformerConfig",
        _PLAIN,
        dict(TEXT, attention_window=[4, 4]),
        declined={
            "chunked-scores": "the scores of overlapping chunks are pasted into one band: a dense kernel would compute "
            "them all, which is what this model avoids"
        },
    ),
    hf("layoutlm", "LayoutLMModel", "LayoutLMConfig", Tokens(extra=("bbox",)), TEXT),
    hf("splinter", "SplinterModel", "SplinterConfig", _TYPED, TEXT),
    hf("squeezebert", "SqueezeBertModel", "SqueezeBertConfig", _PLAIN, dict(TEXT, embedding_size=64)),
    hf("convbert", "ConvBertModel", "ConvBertConfig", _PLAIN, dict(TEXT, embedding_size=64)),
    hf(
        "nystromformer",
        "NystromformerModel",
        "NystromformerConfig",
        _PLAIN,
        dict(TEXT, num_landmarks=4, segment_means_seq_len=4),
    ),
    hf("data2vec_text", "Data2VecTextModel", "Data2VecTextConfig", _PLAIN, TEXT),
    hf("xlm", "XLMModel", "XLMConfig", _PLAIN, dict(emb_dim=64, n_layers=2, n_heads=4, n_words=100)),
    hf("esm", "EsmModel", "EsmConfig", _PLAIN, dict(TEXT, pad_token_id=1, mask_token_id=2)),
    hf(
        "esm_rotary",
        "EsmModel",
        "EsmConfig",
        _PLAIN,
        dict(TEXT, pad_token_id=1, mask_token_id=2, position_embedding_type="rotary"),
    ),
    hf(
        "mobilebert",
        "MobileBertModel",
        "MobileBertConfig",
        _PLAIN,
        dict(TEXT, embedding_size=32, true_hidden_size=32, intra_bottleneck_size=32),
    ),
    hf(
        "eurobert",
        "EuroBertModel",
        "EuroBertConfig",
        _PLAIN,
        dict(TEXT, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, mask_token_id=4),
    ),
    hf("ibert", "IBertModel", "IBertConfig", _PLAIN, TEXT),
    hf("megatron_bert", "MegatronBertModel", "MegatronBertConfig", _TYPED, TEXT),
    hf("nomic_bert", "NomicBertModel", "NomicBertConfig", _PLAIN, TEXT),
    hf(
        "xlnet",
        "XLNetModel",
        "XLNetConfig",
        _PLAIN,
        dict(d_model=64, n_layer=2, n_head=4, d_inner=96, vocab_size=100, use_mems_eval=False),
    ),
    hf(
        "funnel",
        "FunnelBaseModel",
        "FunnelConfig",
        _PLAIN,
        dict(vocab_size=100, block_sizes=[1, 1], d_model=64, n_head=4, d_head=16, d_inner=96),
        impls=("eager",),
        refused="loses a dynamic axis",
    ),
    hf("big_bird_full", "BigBirdModel", "BigBirdConfig", _PLAIN, dict(TEXT, attention_type="original_full")),
)
