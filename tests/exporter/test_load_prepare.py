"""Training mode, caches, shared weights: what loading changes, says, and puts back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deployml.exporter.load import load
from deployml.runtime.errors import InputError

X = ("x:float32[batch,8]",)


class Wrapper(nn.Module):
    """A wrapper whose own flag differs from its child's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def flags(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_training_mode_is_left_and_restored():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    loaded = load(model, kwargs={"input": torch.randn(3, 8)})
    assert not any(flags(model))
    assert any("training mode" in note for note in loaded.notes)
    loaded.restore()
    assert all(flags(model))
    loaded.restore()
    assert all(flags(model))


def test_mixed_modes_come_back_one_by_one():
    model = Wrapper(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)).eval())
    model.inner[0].training = True
    before = flags(model)
    with load(model, inputs=X) as loaded:
        assert not any(flags(model))
        assert any("2 of 4 modules" in note for note in loaded.notes)
    assert flags(model) == before


def test_eval_that_does_nothing_is_overruled():
    class Stubborn(nn.Linear):
        def train(self, mode: bool = True) -> Stubborn:
            return self

    model = nn.Sequential(Stubborn(8, 8))
    with load(model, kwargs={"input": torch.randn(3, 8)}):
        assert not any(flags(model))
    assert all(flags(model))


def test_module_in_eval_is_not_remarked_upon():
    loaded = load(nn.Linear(8, 8).eval(), kwargs={"input": torch.randn(3, 8)})
    assert not any("training" in note for note in loaded.notes)


def test_failed_loading_restores_too():
    model = nn.Linear(8, 8)
    with pytest.raises(InputError):
        load(model, inputs=("nonsense",))
    assert model.training


def test_meta_weights_are_refused():
    with torch.device("meta"):
        model = Wrapper(nn.Linear(8, 8))
    with pytest.raises(InputError, match=r"inner\.weight"):
        load(model, inputs=X)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="not run: transformers is not installed")


def tiny_gpt2(transformers, **options) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=60, n_positions=40, **options)
    return transformers.GPT2LMHeadModel(config).eval()


def test_cache_is_switched_off_and_back_on(transformers):
    model = tiny_gpt2(transformers)
    assert model.config.use_cache
    with load(model) as loaded:
        outputs = loaded.module(*loaded.args, **loaded.kwargs)
        assert list(outputs) == ["logits"]
        assert any("use_cache" in note for note in loaded.notes)
    assert model.config.use_cache


def test_cache_of_a_decoder_with_a_config_of_its_own(transformers):
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=2, vocab_size=60)
    model = transformers.T5ForConditionalGeneration(config).eval()
    with load(model) as loaded:
        leaves = torch.utils._pytree.tree_leaves(tuple(loaded.module(**loaded.kwargs).values()))
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert model.config.use_cache


def test_encoder_with_use_cache_in_its_config_needs_no_word(transformers):
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, vocab_size=60
    )
    loaded = load(transformers.BertModel(config).eval())
    assert not any("cache" in note for note in loaded.notes)


def test_callers_wish_for_a_cache_is_taken_back(transformers):
    ids = torch.randint(0, 60, (2, 5))
    with load(tiny_gpt2(transformers), kwargs={"input_ids": ids, "use_cache": True}) as loaded:
        assert loaded.kwargs["use_cache"] is False
        assert any("taken back" in note for note in loaded.notes)


class Caching(nn.Module):
    """Not from transformers: caches unless told not to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, use_cache: bool = True):
        y = self.layer(x)
        return (y, {"keys": y}) if use_cache else y


def test_cache_by_argument_is_baked_in():
    loaded = load(Caching(), inputs=X)
    assert loaded.kwargs["use_cache"] is False
    assert isinstance(loaded.module(**loaded.kwargs), torch.Tensor)
    program = torch.export.export(loaded.module, loaded.args, dict(loaded.kwargs), dynamic_shapes=loaded.dynamic_shapes)
    assert len(program.graph_signature.user_outputs) == 1


def test_attention_that_cannot_be_traced_is_replaced(transformers):
    model = tiny_gpt2(transformers)
    model.config._attn_implementation = "flash_attention_2"
    with load(model) as loaded:
        assert loaded.module.config._attn_implementation == "sdpa"
        assert any("flash_attention_2" in note for note in loaded.notes)
    assert model.config._attn_implementation == "flash_attention_2"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


@pytest.mark.parametrize("kept", ["embed.weight", "head.weight"])
def test_tied_weights_may_be_saved_once(tmp_path, kept):
    model = Tied()
    torch.save({kept: model.state_dict()[kept]}, tmp_path / "weights.pt")
    loaded = load(tmp_path / "weights.pt", inputs=("ids:int64[batch,seq]",), factory=Tied)
    torch.testing.assert_close(loaded.module.head.weight, model.head.weight)
    assert loaded.module.head.weight is loaded.module.embed.weight


def test_tied_weights_may_be_saved_twice_and_used_once(tmp_path):
    torch.save(Tied().state_dict(), tmp_path / "weights.pt")
    loaded = load(tmp_path / "weights.pt", inputs=("ids:int64[b,s]",), factory=lambda: EmbedOnly())
    assert loaded.module.embed.weight.shape == (20, 8)


class EmbedOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.embed(ids)


def test_weights_of_another_dtype_are_told(tmp_path):
    torch.save(nn.Linear(8, 8).half().state_dict(), tmp_path / "weights.pt")
    loaded = load(tmp_path / "weights.pt", inputs=("input:float32[b,8]",), factory=lambda: nn.Linear(8, 8))
    assert loaded.module.weight.dtype == torch.float32
    assert any("float16" in note and "float32" in note for note in loaded.notes)


def test_half_precision_module_keeps_its_dtype():
    loaded = load(nn.Linear(8, 8).bfloat16(), inputs=("input:bfloat16[b,8]",))
    assert loaded.module.weight.dtype == torch.bfloat16
    assert any("bfloat16" in note for note in loaded.notes)
