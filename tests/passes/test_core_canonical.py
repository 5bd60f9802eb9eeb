"""The canonical attention means what its page says: its expansion against a row-by-row float64 reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deployml.passes import canonical
from deployml.passes.evaluate import in_double
from deployml.passes.graph import census

from .core_graphs import Call, attention, call_model, evaluator, feeds, run

CALLS = {
    "plain": Call(),
    "cross-lengths": Call(scale=0.75),
    "grouped": Call(kv_heads=2),
    "multi-query": Call(kv_heads=1),
    "wide-values": Call(value_size=24),
    "narrow-grouped-values": Call(kv_heads=2, value_size=8),
    "mask-of-keys": Call(mask="B,1,1,T"),
    "mask-of-rows": Call(mask="S,T"),
    "mask-of-heads": Call(mask="1,4,S,T"),
    "mask-of-all": Call(mask="B,4,S,T"),
    "bias-of-heads": Call(bias="1,4,1,1"),
    "bias-of-keys": Call(bias="B,1,1,T"),
    "bias-of-rank-3": Call(bias="4,S,T"),
    "mask-and-bias": Call(mask="B,1,S,T", bias="1,4,S,T"),
    "upper-left": Call(causal="upper_left"),
    "upper-left-square": Call(causal="upper_left", keys="S"),
    "lower-right": Call(causal="lower_right"),
    "lower-right-square": Call(causal="lower_right", keys="S"),
    "causal-and-mask": Call(causal="upper_left", mask="B,1,1,T"),
    "softcap": Call(softcap=2.0, scale=1.5),
    "softcap-and-bias": Call(softcap=2.0, scale=1.5, bias="B,4,S,T", mask="B,1,S,T"),
    "sink": Call(sink=True),
    "sink-grouped-masked": Call(sink=True, kv_heads=2, mask="B,1,S,T", causal="upper_left"),
    "weights": Call(weights=True, mask="B,1,S,T"),
    "sink-weights": Call(sink=True, weights=True),
}


def close(found: np.ndarray, expected: np.ndarray, granted: float) -> None:
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(np.abs(found - expected)) <= granted * np.nanmax(np.abs(expected))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("opset", (15, 20))
def test_the_expansion_is_the_written_meaning(name: str, opset: int) -> None:
    call = CALLS[name]
    model = call_model(call, opset)
    given = feeds(model)
    output, weights = attention(call, given)
    found = run(model, given)
    close(found[0], output, 1e-6)
    if call.weights:
        close(found[1], weights, 1e-6)
    canonical.expand_all(model)
    assert not any(op.startswith(canonical.DOMAIN) for op in census(model))
    wide = evaluator().prepare_exact(in_double(model))
    assert wide is not None
    close(wide(given)[0], output, 1e-12)


@pytest.mark.parametrize("rows", ("zero", "as_written"))
@pytest.mark.parametrize("mask", ("B,1,1,T", "B,4,S,T"))
def test_a_row_without_keys_gives_what_the_node_says(rows: str, mask: str) -> None:
    call = Call(mask=mask, empty_rows=rows)
    model = call_model(call)
    given = feeds(model, empty_row=True)
    output, _ = attention(call, given)
    bad = ~np.isfinite(output) if rows == "as_written" else output == 0.0
    assert bad.any() and not bad.all()
    close(run(model, given)[0], output, 1e-6)


def test_a_sink_takes_the_whole_of_a_row_without_keys() -> None:
    call = Call(sink=True, mask="B,4,S,T")
    model = call_model(call)
    given = feeds(model, empty_row=True)
    output, _ = attention(call, given)
    assert (output[0, :, 1] == 0.0).all()
    close(run(model, given)[0], output, 1e-6)


def test_lower_right_rows_before_the_first_key_are_empty() -> None:
    call = Call(causal="lower_right")
    model = call_model(call)
    given = feeds(model)
    given = {
        "q": np.concatenate([given["q"]] * 2, axis=2),
        "k": given["k"],
        "v": given["v"],
    }  # 10 rows, 7 keys
    output, _ = attention(call, given)
    assert (output[:, :, :3] == 0.0).all() and (output[:, :, 3:] != 0.0).all()
    close(run(model, given)[0], output, 1e-6)


def test_every_feature_is_seen_by_the_comparison() -> None:
    """Leaving any one thing out moves the result by far more than what the tests above grant."""
    whole = Call(kv_heads=2, mask="B,1,S,T", bias="1,4,S,T", sink=True, softcap=2.0, scale=1.5, causal="upper_left")
    model = call_model(whole)
    given = feeds(model)
    exact, _ = attention(whole, given)
    changes = (
        {"mask": ""},
        {"bias": ""},
        {"sink": False},
        {"softcap": 0.0},
        {"scale": 1.65},
        {"causal": "none"},
    )
    for change in changes:
        other, _ = attention(dataclasses.replace(whole, **change), given)
        assert np.max(np.abs(other - exact)) > 1e-2 * np.max(np.abs(exact)), change


@pytest.mark.parametrize("call", (Call(causal="upper_left"), Call(causal="lower_right"), Call(kv_heads=2)))
def test_an_expansion_holds_at_length_one(call: Call) -> None:
    model = call_model(call)
    given = {k: v[:1, :, :1] for k, v in feeds(model).items()}
    output, _ = attention(call, given)
    close(run(model, given)[0], output, 1e-6)
