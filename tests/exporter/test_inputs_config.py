"""Models of transformers say what they take: no list of model types, sizes that collide with nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deployml.exporter.inputs.sizes import numbers_of
from deployml.exporter.load import load
from deployml.runtime.errors import InputError

transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
    "max_position_embeddings": 64,
}
VISION = {**{k: v for k, v in TEXT.items() if k[0] in "hni"}, "image_size": 32, "patch_size": 8}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 60,
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(name: str, config: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return getattr(transformers, name)(getattr(transformers, config)(**options)).eval()


def clip() -> nn.Module:
    text = {**TEXT, "bos_token_id": 58, "eos_token_id": 59}
    return build("CLIPModel", "CLIPConfig", text_config=text, vision_config=VISION, projection_dim=24)


CASES = {
    "bert": (
        lambda: build("BertModel", "BertConfig", **TEXT),
        {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]},
    ),
    "distilbert": (
        lambda: build(
            "DistilBertModel", "DistilBertConfig", dim=32, n_layers=1, n_heads=2, hidden_dim=48, vocab_size=60
        ),
        {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]},
    ),
    "gpt2": (
        lambda: build("GPT2LMHeadModel", "GPT2Config", n_embd=32, n_layer=1, n_head=2, vocab_size=60),
        {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]},
    ),
    "llama": (
        lambda: build("LlamaForCausalLM", "LlamaConfig", **TEXT, num_key_value_heads=1),
        {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]},
    ),
    "bart": (
        lambda: build("BartModel", "BartConfig", **SEQ2SEQ, max_position_embeddings=64),
        {
            "input_ids": ["batch", "seq"],
            "attention_mask": ["batch", "seq"],
            "decoder_input_ids": ["batch", "decoder_seq"],
        },
    ),
    "vit": (
        lambda: build("ViTModel", "ViTConfig", **VISION),
        {"pixel_values": ["batch", 3, 32, 32]},
    ),
    "clip text": (
        lambda: build("CLIPTextModel", "CLIPTextConfig", **TEXT, bos_token_id=58, eos_token_id=59),
        {"input_ids": ["batch", "seq"], "attention_mask": ["batch", "seq"]},
    ),
    "clip": (
        clip,
        {
            "input_ids": ["text_batch", "seq"],
            "pixel_values": ["image_batch", 3, 32, 32],
            "attention_mask": ["text_batch", "seq"],
        },
    ),
    "whisper encoder": (
        lambda: (
            build(
                "WhisperModel",
                "WhisperConfig",
                **SEQ2SEQ,
                **SPECIAL,
                decoder_start_token_id=3,
                max_source_positions=50,
                max_target_positions=40,
                num_mel_bins=20,
            ).encoder
        ),
        {"input_features": ["batch", 20, 100]},
    ),
    "wav2vec2": (
        lambda: build(
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            **TEXT,
            conv_dim=(16, 16),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_feat_extract_layers=2,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
        ),
        {"input_values": ["batch", "samples"]},
    ),
    "layoutlm": (
        lambda: build("LayoutLMModel", "LayoutLMConfig", **TEXT, max_2d_position_embeddings=50),
        {"input_ids": ["batch", "seq"], "bbox": ["batch", "seq", 4], "attention_mask": ["batch", "seq"]},
    ),
    "bros": (
        lambda: build("BrosModel", "BrosConfig", **{**TEXT, "hidden_size": 64}),
        {"input_ids": ["batch", "seq"], "bbox": ["batch", "seq", 4], "attention_mask": ["batch", "seq"]},
    ),
    "audio encoder": (
        lambda: build(
            "ParakeetEncoder",
            "ParakeetEncoderConfig",
            **{k: v for k, v in TEXT.items() if k[0] in "hni"},
            num_mel_bins=16,
            subsampling_conv_channels=8,
        ),
        {"input_features": ["batch", "frames", 16]},
    ),
}


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    make, expected = CASES[request.param]
    model = make()
    loaded = load(model)
    yield model, loaded, expected
    loaded.restore()


def test_axes(case):
    _, loaded, expected = case
    assert list(loaded.kwargs) == list(expected)
    for name, dims in expected.items():
        value, shapes = loaded.kwargs[name], loaded.dynamic_shapes[name]
        described = [shapes[i].__name__ if i in shapes else size for i, size in enumerate(value.shape)]
        assert described == dims


def test_one_name_is_one_size_and_collides_with_nothing(case):
    model, loaded, _ = case
    sizes: dict[str, int] = {}
    for name, shapes in loaded.dynamic_shapes.items():
        for axis, dim in shapes.items():
            assert sizes.setdefault(dim.__name__, loaded.kwargs[name].shape[axis]) == loaded.kwargs[name].shape[axis]
    assert len(set(sizes.values())) == len(sizes)
    assert min(sizes.values()) >= 2
    assert not set(sizes.values()) & numbers_of(model)


def test_model_runs_on_them(case):
    _, loaded, _ = case
    with torch.no_grad():
        outputs = loaded.module(*loaded.args, **loaded.kwargs)
    leaves = torch.utils._pytree.tree_leaves(tuple(outputs.values()))
    assert all(isinstance(leaf, torch.Tensor) and torch.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("name", ["bert", "llama", "bart", "clip"])
def test_one_row_is_padded(name):
    loaded = load(CASES[name][0]())
    mask, ids = loaded.kwargs["attention_mask"], loaded.kwargs["input_ids"]
    assert mask[:-1].all()
    assert 0 < int(mask[-1].sum()) < mask.shape[1]
    pad = loaded.module.config.get_text_config().pad_token_id or 0
    assert (ids[mask == 0] == pad).all()
    assert len(ids[mask == 1].unique()) > 5


def test_half_precision_module_gets_half_precision_floats():
    model = CASES["vit"][0]().half()
    assert load(model).kwargs["pixel_values"].dtype == torch.float16


def test_unknown_required_parameter_asks_for_inputs():
    class Odd(nn.Module):
        main_input_name = "input_ids"

        def __init__(self) -> None:
            super().__init__()
            self.config = transformers.BertConfig(**TEXT)
            self.embed = nn.Embedding(60, 8)

        def forward(self, input_ids, boxes):
            return self.embed(input_ids) + boxes

    with pytest.raises(InputError) as error:
        load(Odd())
    assert "(input_ids, boxes)" in error.value.message
    assert "--input input_ids:int64[batch,seq]" in error.value.hint


def test_optional_image_of_a_language_model_is_mentioned():
    vision = {**VISION, "model_type": "clip_vision_model"}
    text = {**TEXT, "model_type": "llama"}
    model = build(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        text_config=text,
        vision_config=vision,
        image_token_index=59,
    )
    loaded = load(model)
    assert list(loaded.kwargs) == ["input_ids", "attention_mask"]
    assert any("without pixel_values" in note for note in loaded.notes)


def test_text_beats_the_config():
    model = CASES["bert"][0]()
    loaded = load(model, inputs=("input_ids:int64[2,seq]",))
    assert list(loaded.kwargs) == ["input_ids"]
    assert loaded.kwargs["input_ids"].shape[0] == 2
    assert list(loaded.dynamic_shapes["input_ids"]) == [1]


def test_arrays_of_known_names_get_their_usual_axes(tmp_path):
    import numpy as np

    np.savez(tmp_path / "x.npz", input_ids=np.ones((2, 9), np.int64), attention_mask=np.ones((2, 9), np.int64))
    loaded = load(CASES["bert"][0](), inputs_file=tmp_path / "x.npz")
    assert {axis: dim.__name__ for axis, dim in loaded.dynamic_shapes["input_ids"].items()} == {
        0: "batch",
        1: "seq",
    }
