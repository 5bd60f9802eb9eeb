"""``--with-past``: a decoder with its cache as inputs and outputs, decoding step by step as eager does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

import deployml
from deployml.cli import app
from deployml.exporter.load import load

SMALL = {"vocab_size": 60, "max_position_embeddings": 64}
STEPS = 4


def llama() -> torch.nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        **SMALL,
    )
    return drawn(transformers.LlamaForCausalLM(config))


def gpt2() -> torch.nn.Module:
    config = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, n_positions=64, pad_token_id=0)
    return drawn(transformers.GPT2LMHeadModel(config))


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights large enough for a wrong cache to show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    return model.eval()


def eager_logits(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """The logits of the last token when everything is computed at once."""
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False).logits[:, -1].numpy()


def empty_cache(session: Any, batch: int) -> dict[str, np.ndarray]:
    return {
        i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
        for i in session.get_inputs()
        if i.name.startswith("past_key_values")
    }


@pytest.mark.parametrize("make", [llama, gpt2], ids=lambda make: make.__name__)
def test_decoding_step_by_step_gives_what_eager_gives_at_once(make: Any, tmp_path: Path) -> None:
    model = make()
    artifact = deployml.export(model, output=tmp_path / "m.onnx", with_past=True, require_fused="all", html=False)
    assert artifact.report.verdict == "pass"
    with pytest.raises(deployml.InputError, match="--with-past"):
        deployml.validate(artifact.path, against=model)
    session = deployml.session(artifact.path)
    names = [o.name for o in session.get_outputs()]
    assert names[:3] == ["logits", "present.0.key", "present.0.value"]
    ids = torch.randint(1, 60, (2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0  # the second row is shorter and padded on the left
    cache = empty_cache(session, 2)
    new = ids
    for _ in range(STEPS):
        feeds = {"input_ids": new.numpy(), "attention_mask": mask.numpy(), **cache}
        found = dict(zip(names, session.run(None, feeds), strict=True))
        wanted = eager_logits(model, ids, mask)
        np.testing.assert_allclose(found["logits"][:, -1], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        cache = {name.replace("present", "past_key_values"): found[name] for name in names[1:]}
        assert cache["past_key_values.0.key"].shape[2] == ids.shape[1]
        new = torch.from_numpy(found["logits"][:, -1].argmax(-1))[:, None]
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)


def test_the_command_line_names_the_axes(tmp_path: Path) -> None:
    folder, output = tmp_path / "model", tmp_path / "m.onnx"
    llama().save_pretrained(folder)
    done = CliRunner().invoke(app, ["export", str(folder), "--with-past", "-o", str(output), "--no-html", "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert not [warning for warning in report["warnings"] if "use_cache" in warning]
    assert [site["status"] for site in report["sites"]] == ["fused", "fused"]
    shapes = {i.name: i.shape for i in deployml.session(output).get_inputs()}
    assert shapes["input_ids"] == ["batch", "seq"]
    assert shapes["attention_mask"] == ["batch", "past + seq"]
    assert shapes["past_key_values.1.value"] == ["batch", 2, "past", 8]


def test_what_is_no_decoder_is_refused() -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, **SMALL
    )
    with pytest.raises(deployml.InputError, match="gives no cache"):
        load(transformers.BertModel(config), with_past=True)
    with pytest.raises(deployml.InputError, match="no decoder with input_ids"):
        load(torch.nn.Linear(2, 2), with_past=True)

    class Fails(torch.nn.Module):
        config = transformers.GPT2Config()

        def forward(self, input_ids, attention_mask=None, past_key_values=None):
            raise ValueError("pixel_values are missing")

    with pytest.raises(deployml.InputError, match="does not run on two tokens"):
        load(Fails(), with_past=True)
    with pytest.raises(deployml.InputError, match="chooses the inputs itself"):
        load(llama(), with_past=True, inputs=["input_ids:int64[batch,seq]"])


def test_an_axis_may_be_a_sum() -> None:
    class Summed(torch.nn.Module):
        def forward(self, x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.cat([past, x], 1) * mask

    texts = ["x:float32[batch,seq]", "past:float32[batch,past]", "mask:float32[batch,past+seq]"]
    loaded = load(Summed(), inputs=texts)
    sizes = {name: value.shape[1] for name, value in loaded.kwargs.items()}
    assert sizes["mask"] == sizes["x"] + sizes["past"]
    wrong = {"x": torch.ones(2, 3), "past": torch.ones(2, 4), "mask": torch.ones(2, 8)}
    shapes = {"x": {1: "seq"}, "past": {1: "past"}, "mask": {1: "past + seq"}}
    with pytest.raises(deployml.InputError, match="is 7 by the other inputs and 8"):
        deployml.export(Summed(), kwargs=wrong, dynamic_shapes=shapes, output="unwritten.onnx")


def test_a_sum_of_axes_holds_in_the_graph(tmp_path: Path) -> None:
    class Summed(torch.nn.Module):
        def forward(self, x: torch.Tensor, past: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return torch.cat([past, x], 1) * mask

    texts = ["x:float32[batch,seq]", "past:float32[batch,past]", "mask:float32[batch,past+seq]"]
    artifact = deployml.export(Summed(), inputs=texts, output=tmp_path / "m.onnx", html=False)
    assert artifact.report.verdict == "pass"
    assert {c.shape[1] for c in artifact.report.parity.comparisons} != {7}
    assert deployml.session(artifact.path).get_inputs()[2].shape == ["batch", "past + seq"]
