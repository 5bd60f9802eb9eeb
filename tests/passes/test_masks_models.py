"""The masks of real architectures, exported by torch and left as they are, are read in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from deployml.passes.graph import producer
from deployml.passes.masks import KeyPadding, MaskFacts, Memo, Window, analyse, describe, window_of

torch = pytest.importorskip("torch", reason="not run: torch is not installed")
transformers = pytest.importorskip("transformers", reason="not run: transformers is not installed")

SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "use_cache": False,
}


def _bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**SMALL))


def _mistral() -> Any:
    return transformers.MistralModel(transformers.MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=3))


def _llama() -> Any:
    return transformers.LlamaModel(transformers.LlamaConfig(**SMALL, num_key_value_heads=2))


def _modernbert() -> Any:
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    return transformers.ModernBertModel(
        transformers.ModernBertConfig(
            **{**SMALL, "num_hidden_layers": 2}, **special, local_attention=4, global_attn_every_n_layers=2
        )
    )


def _gpt2() -> Any:
    return transformers.GPT2Model(
        transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=4, use_cache=False)
    )


def _bloom() -> Any:
    return transformers.BloomModel(
        transformers.BloomConfig(vocab_size=99, hidden_size=32, n_layer=1, n_head=4, use_cache=False)
    )


def _mpt() -> Any:
    return transformers.MptModel(
        transformers.MptConfig(vocab_size=99, d_model=32, n_layers=1, n_heads=4, max_seq_len=64, use_cache=False)
    )


def _gpt_neo() -> Any:
    return transformers.GPTNeoModel(
        transformers.GPTNeoConfig(
            vocab_size=99,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=3,
            max_position_embeddings=64,
            use_cache=False,
        )
    )


def _export(build: Callable[[], Any], attention: str) -> ir.Model:
    torch.manual_seed(0)
    model = build().eval()
    model.set_attn_implementation(attention)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 4:] = 0
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        model,
        (),
        kwargs={"input_ids": torch.randint(3, 90, (2, 6)), "attention_mask": mask},
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        optimize=False,
        opset_version=20,
        verbose=False,
    )
    return ShapeInferencePass()(program.model).model


def _reads_scores(value: ir.Value) -> bool:
    pending, seen = [value], set()
    while pending:
        node = producer(pending.pop())
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type in ("MatMul", "Gemm"):
            return True
        pending += [v for v in node.inputs if v is not None]
    return False


def _masks(model: ir.Model) -> Iterator[list[MaskFacts]]:
    """Per softmax, the facts of every mask between it and the scores, outermost first."""
    memo = Memo()
    for node in model.graph:
        if node.op_type != "Softmax":
            continue
        found: list[MaskFacts] = []
        scores = node.inputs[0]
        assert scores is not None and scores.shape is not None
        query, key = scores.shape[-2], scores.shape[-1]
        while (above := producer(scores, "Add", "Where", "Cast")) is not None:
            masked = above.op_type == "Where"
            inputs = [v for v in above.inputs if v is not None]
            others = inputs[:1] if masked else [v for v in inputs if not _reads_scores(v)]
            scores = next(v for v in inputs[masked:] if _reads_scores(v) and len(v.shape or ()) == 4)
            for value in others:
                forbids = masked and scores is inputs[2]
                facts = analyse(value, query_dim=query, key_dim=key, forbids=forbids, memo=memo)
                assert facts is not None
                found.append(facts)
        yield found


EVERYDAY = [
    ("bert", _bert, [["key_padding"]]),
    ("mistral", _mistral, [["causal+window+key_padding"]]),
    ("modernbert", _modernbert, [["key_padding"], ["window+key_padding"]]),
    ("mpt", _mpt, [["causal+key_padding", "bias"]]),
]
MORE = [
    ("llama", _llama, [["causal+key_padding"]]),
    ("gpt2", _gpt2, [["causal+key_padding"]]),
    ("bloom", _bloom, [["causal+key_padding"]]),
    ("gpt_neo", _gpt_neo, [["causal+key_padding", "causal"], ["causal+key_padding", "causal+window"]]),
]


def _check(name: str, build: Callable[[], Any], expected: list[list[str]], attention: str) -> None:
    sites = list(_masks(_export(build, attention)))
    assert [[describe(f)["mask"] for f in site] for site in sites] == expected
    for facts in (f for site in sites for f in site):
        padding = [c for c in facts.conjuncts if isinstance(c, KeyPadding)]
        assert all((c.value.name, c.how) == ("attention_mask", "nonzero") for c in padding)
        assert not facts.residual and not facts.assumes_binary
        window = window_of(facts)
        assert window in (None, Window(3), Window(3, 3) if name == "modernbert" else None)


@pytest.mark.parametrize(("name", "build", "expected"), EVERYDAY, ids=[e[0] for e in EVERYDAY])
def test_masks_of_models_are_read_in_full(name: str, build: Callable[[], Any], expected: list[list[str]]) -> None:
    _check(name, build, expected, "eager")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("name", "build", "expected"), MORE, ids=[e[0] for e in MORE])
def test_masks_of_more_models_are_read_in_full(
    name: str, build: Callable[[], Any], expected: list[list[str]], attention: str
) -> None:
    _check(name, build, expected, attention)
