"""Tiny models of many families export whole and equal eager at sizes the trace did not see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from deployml.exporter.capture import capture, check_dynamic, slow_paths
from deployml.exporter.capture.outputs import flatten_outputs
from deployml.exporter.loaded import Loaded
from deployml.exporter.source_map import SOURCE_KEY
from deployml.exporter.translate import translate
from deployml.passes.canonical import expand_all, is_attention

transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

AXES = {0: "batch", 1: "sequence"}
Inputs = Callable[[int, int], dict[str, torch.Tensor]]
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 99,
}
DECODER = {**SMALL, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1}
T5 = {"vocab_size": 99, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}


def _text(batch: int, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, : min(row, length - 1)] = 0
    return {"input_ids": torch.randint(2, 99, (batch, length), generator=generator), "attention_mask": mask}


def _pair(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {**_text(batch, length), "decoder_input_ids": _text(batch, length + 2, 1)["input_ids"]}


def _image(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(length))}


def _padded(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    pad = torch.zeros(batch, length, dtype=torch.bool)
    for row in range(1, batch):
        pad[row, length - min(row, length - 1) :] = True
    return {"x": torch.randn(batch, length, 64, generator=generator), "pad": pad}


TEXT = {"input_ids": AXES, "attention_mask": AXES}
PAIR = {**TEXT, "decoder_input_ids": {0: "batch", 1: "target"}}
IMAGE = {"pixel_values": {0: "batch"}}
PADDED = {"x": AXES, "pad": AXES}


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 2)

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        return self.encoder(x, src_key_padding_mask=pad)


class MultiHead(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, key_padding_mask=pad, need_weights=False)[0]


def _hugging(model: str, config: str, **options: Any) -> Callable[[], torch.nn.Module]:
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options))


BART = {
    "vocab_size": 99,
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 64,
}
VISION = {key: size for key, size in SMALL.items() if key != "vocab_size"}
SWIN = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 32,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
FALCON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 99}
GPT2 = {"vocab_size": 99, "n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}

#: name -> (build, inputs, axes, attention calls)
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], Inputs, Mapping[str, Any], int]] = {
    "bert": (_hugging("BertModel", "BertConfig", **SMALL), _text, TEXT, 2),
    "llama": (_hugging("LlamaForCausalLM", "LlamaConfig", **DECODER), _text, TEXT, 2),
    "t5_encoder": (_hugging("T5EncoderModel", "T5Config", **T5), _text, TEXT, 2),
    "beit": (
        _hugging(
            "BeitModel",
            "BeitConfig",
            **SMALL,
            image_size=32,
            patch_size=8,
            use_relative_position_bias=True,
        ),
        _image,
        IMAGE,
        2,
    ),
    "swin": (_hugging("SwinModel", "SwinConfig", **SWIN), _image, IMAGE, 4),
    "falcon": (_hugging("FalconForCausalLM", "FalconConfig", **FALCON, multi_query=True), _text, TEXT, 2),
    "falcon_alibi": (_hugging("FalconForCausalLM", "FalconConfig", **FALCON, alibi=True), _text, TEXT, 2),
    "gpt2": (_hugging("GPT2LMHeadModel", "GPT2Config", **GPT2, n_positions=64), _text, TEXT, 2),
    "bart": (_hugging("BartModel", "BartConfig", **BART), _pair, PAIR, 6),
    "vit": (_hugging("ViTModel", "ViTConfig", **VISION, image_size=32, patch_size=8), _image, IMAGE, 2),
    "mixtral": (
        _hugging("MixtralForCausalLM", "MixtralConfig", **DECODER, num_local_experts=4),
        _text,
        TEXT,
        2,
    ),
    "transformer_encoder": (Encoder, _padded, PADDED, 2),
    "multihead_attention": (MultiHead, _padded, PADDED, 1),
}


def _redrawn(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """Weights of standard deviation 0.15: default ones hide what attention does."""
    module = build().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
    return module


def _eager(module: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    with torch.no_grad(), slow_paths():
        return flatten_outputs(module(**inputs))[0]


@pytest.mark.parametrize("name", MODELS)
def test_model_exports_whole_and_equals_eager(name: str) -> None:
    build, inputs, axes, calls = MODELS[name]
    module = _redrawn(build)
    loaded = Loaded(module, "module", name, (), inputs(3, 7), axes)
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
    translated = translate(captured, opset=20)

    nodes = [node for node in translated.model.graph.all_nodes() if is_attention(node)]
    assert captured.attention_calls == len(nodes) == calls
    assert all(node.metadata_props[SOURCE_KEY].count(":") == 1 for node in nodes)
    assert captured.input_names == tuple(value.name for value in translated.model.graph.inputs)
    untyped = [
        value.name for node in translated.model.graph.all_nodes() for value in node.outputs if value.type is None
    ]
    assert untyped == []

    expand_all(translated.model)
    session = onnxruntime.InferenceSession(ir.to_proto(translated.model).SerializeToString())
    for batch, length in ((2, 11), (1, 5)):
        feeds = inputs(batch, length)
        expected = _eager(module, feeds)
        found = session.run(None, {key: value.numpy() for key, value in feeds.items()})
        assert [output.name for output in session.get_outputs()] == list(expected)
        for result, (output, reference) in zip(found, expected.items(), strict=True):
            largest = float(reference.abs().max())
            assert largest > 0
            np.testing.assert_allclose(result, reference.numpy(), rtol=0, atol=1e-5 * largest, err_msg=output)
