"""Every way to call scaled_dot_product_attention becomes one canonical node with the same meaning."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from deployml.exporter.capture import Captured, capture, slow_paths
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import Translated, translate
from deployml.passes.canonical import expand_all, is_attention, read
from deployml.runtime.errors import UnsupportedError

sdpa = torch.nn.functional.scaled_dot_product_attention
AXES = {0: "batch", 1: "sequence"}


def _heads(x: torch.Tensor, count: int) -> torch.Tensor:
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(1, 2)


def _bias(x: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(x.shape[1])
    return -0.3 * (rows[:, None] - rows[None, :]).abs().to(x.dtype)


CALLS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "plain": lambda x, m: sdpa(_heads(x, 4), _heads(x + 1, 4), _heads(x * 2, 4)),
    "causal": lambda x, m: sdpa(_heads(x, 4), _heads(x + 1, 4), _heads(x * 2, 4), is_causal=True),
    "causal_cross": lambda x, m: sdpa(
        _heads(x, 4), _heads(torch.cat([x, x * 0.5], 1), 4), _heads(torch.cat([x, -x], 1), 4), is_causal=True
    ),
    "scale": lambda x, m: sdpa(_heads(x, 4), _heads(x + 1, 4), _heads(x, 4), scale=0.7),
    "padding": lambda x, m: sdpa(_heads(x, 4), _heads(x + 1, 4), _heads(x, 4), attn_mask=m[:, None, None, :] > 0),
    "bias": lambda x, m: sdpa(_heads(x, 4), _heads(x + 1, 4), _heads(x, 4), attn_mask=_bias(x)),
    "infinite_bias": lambda x, m: sdpa(
        _heads(x, 4),
        _heads(x + 1, 4),
        _heads(x, 4),
        attn_mask=torch.zeros_like(m, dtype=x.dtype).masked_fill(m == 0, float("-inf"))[:, None, None, :],
    ),
    "grouped": lambda x, m: sdpa(_heads(x, 8), _heads(x[..., :16], 4), _heads(x[..., 16:32], 4), enable_gqa=True),
    "multi_query": lambda x, m: sdpa(_heads(x, 8), _heads(x[..., :4], 1), _heads(x[..., 4:8], 1)),
    "wide_value": lambda x, m: sdpa(_heads(x, 4), _heads(x + 1, 4), _heads(torch.cat([x, x], -1), 4)),
    "three_axes": lambda x, m: sdpa(x, x + 1, x * 2, attn_mask=m[:, None, :] > 0),
    "five_axes": lambda x, m: sdpa(
        _heads(x, 4)[:, None].expand(-1, 2, -1, -1, -1),
        torch.stack([_heads(x, 4), _heads(x + 1, 4)], 1),
        torch.stack([_heads(x, 4), _heads(-x, 4)], 1),
        attn_mask=(m > 0)[:, None, None, None, :],
    ),
    "shared_keys": lambda x, m: sdpa(_heads(x, 4), _heads(x[:1], 4), _heads(x[:1] * 2, 4)),
}


class Calls(torch.nn.Module):
    """All calls side by side, one output each."""

    def forward(self, x: torch.Tensor, m: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: call(x, m) for name, call in CALLS.items()}


def _inputs(batch: int, length: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    mask = torch.ones(batch, length, dtype=torch.int64)
    for row in range(1, batch):
        mask[row, : min(row, length - 1)] = 0
    return {"x": torch.randn(batch, length, 32, generator=generator), "m": mask}


@pytest.fixture(scope="module")
def captured() -> Captured:
    loaded = Loaded(Calls().eval(), "module", "calls", (), _inputs(3, 7), {"x": AXES, "m": AXES})
    return capture(loaded)


@pytest.fixture(scope="module")
def translated(captured: Captured) -> Translated:
    return translate(captured, opset=20)


@pytest.fixture(scope="module")
def session(captured: Captured) -> onnxruntime.InferenceSession:
    model = translate(captured, opset=20).model
    assert expand_all(model) == len(CALLS)
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())


def _nodes(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph.all_nodes() if is_attention(node)]


@pytest.mark.parametrize("sizes", [(3, 7), (2, 11), (1, 1)])
def test_outputs_equal_eager_at_any_size(session: onnxruntime.InferenceSession, sizes: tuple[int, int]) -> None:
    inputs = _inputs(*sizes)
    with torch.no_grad():
        expected = Calls()(**inputs)
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert [output.name for output in session.get_outputs()] == list(CALLS)
    for name, value in zip(CALLS, found, strict=True):
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=0, atol=2e-6, err_msg=name)


def test_every_call_is_one_node(captured: Captured, translated: Translated) -> None:
    assert captured.attention_calls == len(CALLS)
    assert len(_nodes(translated.model)) == len(CALLS)


def test_facts_of_the_calls(translated: Translated) -> None:
    sites = dict(zip(CALLS, map(read, _nodes(translated.model)), strict=True))
    assert sites["plain"].scale == pytest.approx(8**-0.5)
    assert sites["scale"].scale == pytest.approx(0.7)
    assert sites["causal"].causal == sites["causal_cross"].causal == "upper_left"
    assert sites["padding"].causal == "none"
    assert sites["padding"].mask is not None and sites["padding"].bias is None
    assert sites["bias"].bias is not None and sites["bias"].mask is None
    assert all(site.origin == "sdpa" for site in sites.values())


@pytest.mark.parametrize(("name", "heads", "kv_heads"), [("grouped", 8, 4), ("multi_query", 8, 1)])
def test_shared_heads_are_not_expanded(translated: Translated, name: str, heads: int, kv_heads: int) -> None:
    site = read(_nodes(translated.model)[list(CALLS).index(name)])
    assert site.query.shape is not None and site.query.shape[1] == heads
    assert site.key.shape is not None and site.key.shape[1] == kv_heads
    assert site.value.shape is not None and site.value.shape[1] == kv_heads


def test_every_operand_has_four_axes_and_a_type(translated: Translated) -> None:
    for node in _nodes(translated.model):
        for value in (*node.inputs[:3], *node.outputs):
            assert value is not None and value.shape is not None and len(value.shape) == 4
            assert value.dtype == ir.DataType.FLOAT


def test_the_program_still_runs(captured: Captured) -> None:
    inputs = _inputs(2, 5)
    with torch.no_grad(), slow_paths():
        found = captured.program.module(check_guards=False)(**inputs)
        expected = Calls()(**inputs)
    for name, value in zip(CALLS, found, strict=True):
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-6)


class WithDropout(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return sdpa(x, x, x, dropout_p=0.1)


def test_dropout_in_eval_mode_is_refused_by_line() -> None:
    loaded = Loaded(WithDropout().eval(), "module", "m", (torch.randn(1, 2, 3, 4),))
    with pytest.raises(UnsupportedError, match="dropout_p") as caught:
        capture(loaded)
    assert caught.value.where is not None and "test_translate_attention.py:" in caught.value.where
