"""The differential suite in the everyday run, and that the fuzzer itself finds, counts and shrinks what is wrong."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from deployml.passes import proof
from deployml.passes.attention import multi_head, own
from deployml.passes.proof import Proof

from . import attention_heads, attention_trial
from .attention_feed import inputs, rows_with_keys
from .attention_graphs import build
from .attention_judge import SIZES, judge
from .attention_source import PRELUDE, module_source
from .attention_spec import AttentionSpec, draw, for_half, for_older_exporter, simpler
from .attention_trial import trial
from .fuzz import LANES, fuzz, shrink

PLAIN = AttentionSpec()


EVERYDAY = tuple(lane for lane in LANES if lane.exporter == "written")


def test_random_attentions_are_right() -> None:
    """A fixed share of what the long run tries, by the quick way to a graph."""
    counts = fuzz(seconds=600, sites=160, seed=11, lanes=EVERYDAY)
    assert counts.wrong == 0, counts.cases
    assert not counts.broken and not counts.overlooked and not counts.faulty_exports, counts.as_json()
    assert counts.tried >= 160
    assert sum(counts.fused.values()) >= 80
    assert sum(counts.fused.values()) + sum(counts.declined.values()) == counts.tried


def test_random_attentions_that_torch_exports_are_right() -> None:
    lane = next(lane for lane in LANES if lane.name == "torch.export")
    counts = fuzz(seconds=600, sites=4, seed=12, lanes=[lane], group=4)
    assert counts.wrong == 0, counts.cases
    assert not counts.broken and counts.tried == 4


#: What the fuzzer found once: masks of finite numbers that add up, exponentials without a maximum in a site that stays
#: declined, a floor under masked scores.
FOUND = (
    AttentionSpec(bias="rows", masks=("causal", "padding"), fill="add_min", apart=True, guard="where"),
    AttentionSpec(
        packing="split", product="baddbmm", softcap=5.0, bias="table", masks=("lengths",), fill="add_min",
        mask_first=True, apart=True, softmax="exp",
    ),
    AttentionSpec(masks=("causal", "padding"), floor="max"),
    AttentionSpec(masks=("queries",), fill="add_inf", floor="clamp", guard="where"),
    AttentionSpec(masks=("padding",), fill="min", bias="heads", softmax="exp_max"),
    AttentionSpec(bias="alibi", masks=("causal", "input"), fill="add_inf", mask_first=True, apart=True),
)  # fmt: skip


def test_the_order_of_the_heads_does_not_matter() -> None:
    rng = random.Random(5)
    result = trial([draw(rng) for _ in range(10)], seed=1000, exporter="written", heads=True)
    assert not result.broken
    assert not [found.problem for found in result.found if found.problem]


@pytest.mark.parametrize("left", ("o", "table"))
def test_a_head_that_is_left_behind_is_seen(monkeypatch: pytest.MonkeyPatch, left: str) -> None:
    move = attention_heads._moved
    monkeypatch.setattr(
        attention_heads, "_moved", lambda name, *rest: rest[0] if name.startswith(left) else move(name, *rest)
    )
    result = trial([AttentionSpec(bias="table")], seed=3, exporter="written", heads=True)
    assert "another order of the heads" in result.found[0].problem


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
def test_what_was_found_stays_repaired(dtype: str) -> None:
    specs = FOUND if dtype == "float32" else [for_half(spec) for spec in FOUND]
    result = trial(specs, seed=1100033, exporter="written", dtype=dtype)
    assert not result.broken
    assert not [found.problem for found in result.found if found.problem]
    sites = [found.site for found in result.found]
    assert [s is not None and s.status for s in sites] == ["fused"] * 6
    if dtype == "float32":
        assert all(s is not None and "fully-masked-rows" in s.assumptions for s in sites)


@pytest.mark.slow
@pytest.mark.parametrize("seed", (101, 102))
def test_many_random_attentions_are_right(seed: int) -> None:
    counts = fuzz(seconds=3600, sites=1000, seed=seed)
    assert counts.wrong == 0, counts.cases
    assert not counts.broken and not counts.overlooked, counts.cases


@pytest.mark.parametrize("target", ("cpu", "cpu-old", "portable"))
def test_a_plain_attention_is_fused_on_every_target(target: str) -> None:
    result = trial([PLAIN], seed=1, target=target, exporter="written")
    assert not result.broken
    (found,) = result.found
    assert not found.problem and found.site is not None and found.site.status == "fused"


#: Once declined for names of dimensions, for an order of axes or for the place of a cap.
ONCE_DECLINED = (
    AttentionSpec(product="bmm", masks=("causal",), bias="table"),
    AttentionSpec(product="bmm", masks=("padding",), sink="logit"),
    AttentionSpec(product="bmm", masks=("padding",), sink="one"),
    AttentionSpec(product="bmm", masks=("causal", "padding"), fill="1e9", guard="where", apart=True),
    AttentionSpec(product="baddbmm", masks=("padding",), softcap=5.0, scale="divide", bias="alibi"),
    AttentionSpec(product="bmm", time_first=True, packing="last", rotary="half", masks=("segments",)),
    AttentionSpec(scale="late", softcap=5.0, bias="heads", masks=("causal",), fill="min"),
    AttentionSpec(product="einsum", letters="hbqk", guard="where", masks=("padding",)),
    AttentionSpec(product="einsum", letters="bqhk", guard="zero_rows", masks=("causal", "padding"), weights=True),
    AttentionSpec(product="einsum", letters="hbqk", floor="clamp", masks=("left",), fill="min"),
    AttentionSpec(guard="zero_rows", masks=("padding", "causal"), fill="where", apart=True),
    AttentionSpec(guard="no_keys", masks=("padding", "causal"), product="einsum", letters="hbqk"),
    AttentionSpec(softmax="again", masks=("left",), bias="alibi", weights=True),
    AttentionSpec(softmax="exp_kept", masks=("causal", "padding"), fill="1e9", time_first=True),
    AttentionSpec(sink="logit", weights=True, masks=("causal",)),
    AttentionSpec(sink="logit", weights=True, product="bmm", bias="table"),
    AttentionSpec(product="einsum", letters="hbqk", softcap=5.0, masks=("segments",)),
    AttentionSpec(product="einsum", letters="bqhk", softcap=5.0, bias="rows", masks=("causal", "padding"), fill="min"),
)


@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_what_was_once_declined_is_fused(dtype: str) -> None:
    specs = ONCE_DECLINED if dtype == "float32" else [for_half(spec) for spec in ONCE_DECLINED]
    result = trial(specs, seed=11, exporter="written", dtype=dtype)
    assert not result.broken
    assert not [found.problem for found in result.found if found.problem]
    assert [found.site and found.site.status for found in result.found] == ["fused"] * len(specs)


#: A boolean mask and a bias meet, with rows that have no key and without.
_BOTH = (
    AttentionSpec(masks=("padding",), bias="table"),
    AttentionSpec(masks=("causal", "left"), bias="input", guard="zero_rows"),
    AttentionSpec(masks=("input",), bias="heads", product="sdpa"),
    AttentionSpec(masks=("padding",), bias="alibi", softcap=5.0, kv_heads=2),
)


@pytest.mark.parametrize("target", ("cpu", "portable"))
def test_a_mask_beside_a_bias_is_fused(target: str) -> None:
    result = trial(_BOTH, seed=13, target=target, exporter="written")
    assert not result.broken
    assert not [found.problem for found in result.found if found.problem]
    assert [found.site and found.site.status for found in result.found] == ["fused"] * len(_BOTH)


@pytest.fixture
def blind_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every rewrite pass unproven."""
    monkeypatch.setattr(proof.Prover, "prove", lambda *_: Proof(True, 0.0, 0.0, 1.0))


def _off_by_a_tenth(build: Callable[..., Any]) -> Callable[..., Any]:
    def wrong(self: Any, facts: Any, g: Any) -> Any:
        node = dataclasses.replace(facts.site.node, scale=facts.site.node.scale * 1.1)
        return build(self, dataclasses.replace(facts, site=dataclasses.replace(facts.site, node=node)), g)

    return wrong


def test_a_wrong_lowering_that_no_proof_stops_is_found(monkeypatch: pytest.MonkeyPatch, blind_proof: None) -> None:
    """Were the proof blind, the comparison with eager would still see a scale that is off by a tenth."""
    for lowering in (multi_head.MultiHead, own.OwnAttention):  # which of them is taken depends on the machine
        monkeypatch.setattr(lowering, "build", _off_by_a_tenth(lowering.build))
    result = trial([PLAIN], seed=1, exporter="written")
    assert not result.broken
    assert "off by" in result.found[0].problem


@pytest.mark.parametrize(
    ("changed", "words"),
    [((1, SIZES[0][1]), "a batch split"), ((SIZES[0][0], SIZES[0][1] + 4), "more positions of padding")],
)
def test_what_must_not_matter_is_seen_where_it_does(changed: tuple[int, int], words: str) -> None:
    """A module that is right at the sizes compared with eager, and wrong alone or beside more padding."""
    spec = dataclasses.replace(PLAIN, masks=("padding",))
    module = build([spec], 1)

    def fused(given: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
        with torch.no_grad():
            (result,) = (r.numpy() for r in module(**given))
        return [result * 1.1 if given["x"].shape[:2] == changed else result]

    (judged,) = judge([spec], module, fused, fused, [False], seed=1)
    assert words in judged.problem


def test_shrinking_keeps_what_fails_and_drops_the_rest() -> None:
    rich = dataclasses.replace(
        PLAIN,
        softcap=5.0,
        bias="t5",
        masks=("causal", "padding"),
        fill="min",
        key_transpose="mT",
        heads=6,
        kv_heads=6,
    )
    small = shrink(rich, lambda s: "padding" in s.masks and s.fill == "min", limit=200)
    assert small == dataclasses.replace(PLAIN, masks=("padding",), fill="min")


def test_every_simpler_spec_fits_and_differs() -> None:
    rng = random.Random(5)
    for spec in (draw(rng) for _ in range(50)):
        candidates = list(simpler(spec))
        assert all(c.fits() and c != spec for c in candidates)
        assert spec == PLAIN or candidates


def test_every_value_of_every_choice_is_drawn() -> None:
    rng, seen = random.Random(6), {f.name: set() for f in dataclasses.fields(AttentionSpec)}
    for _ in range(4000):
        spec = draw(rng)
        for name, values in seen.items():
            values.add(getattr(spec, name))
    assert seen["product"] == {"sdpa", "matmul", "bmm", "baddbmm", "einsum"}
    assert seen["repeat"] == {"expand", "interleave", "index", "grouped", "sdpa"}
    assert len(seen["masks"]) == 20 and len(seen["bias"]) == 10 and len(seen["fill"]) == 8
    assert len(seen["relative"]) == 7 and len(seen["rotary"]) == 7 and len(seen["packing"]) == 6
    assert [len(seen[name]) for name in ("tokens", "reduce", "memory", "talking")] == [4] * 4
    assert seen["position_bias"] == seen["shared_positions"] == {True, False}
    assert len(seen["softmax"]) == 7 and len(seen["scale"]) == 10 and len(seen["rename"]) > 500


@pytest.mark.parametrize("only", ({"relative": ("both",)}, {"tokens": ("windows",), "masks": (("causal",),)}))
def test_fields_are_forced(only: Mapping[str, Any]) -> None:
    rng = random.Random(9)
    specs = [draw(rng, only) for _ in range(20)]
    assert all(getattr(spec, name) in values for spec in specs for name, values in only.items())
    assert len(set(specs)) == 20


def test_an_attention_without_a_record_is_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_trial, "_site", lambda *_: None)
    only = {"masks": ((),)}  # rows without keys would be a case too: what has no record has no assumption
    counts = fuzz(seconds=600, sites=1, seed=1, lanes=EVERYDAY[:1], group=1, only=only)
    assert counts.overlooked == 1
    assert [case["trouble"] for case in counts.cases] == ["left no record in the journal"]


#: Keys fewer than queries leave late rows without any: once nothing said so. Windows folded into the batch, and keys of
#: half the length, once had sizes nobody could tell; mixed heads were once overlooked.
OF_OTHER_TOKENS = (
    AttentionSpec(masks=("window",), reduce="stride"),
    AttentionSpec(masks=("window",), window=12, cross=True),
    AttentionSpec(masks=("band",), window=3, fill="-inf", reduce="pool", memory="learned"),
    AttentionSpec(masks=("causal", "window"), window=4, fill="add_inf", reduce="pool", relative="shift"),
    AttentionSpec(masks=("window",), window=3, fill="1e9", scale="none", bias="keys", guard="where", reduce="conv"),
    AttentionSpec(tokens="shifted", bias="relative"),
    AttentionSpec(tokens="windows", bias="table", packing="unbind"),
    AttentionSpec(tokens="channels", reduce="conv"),
    AttentionSpec(reduce="pool", masks=("padding",)),
    AttentionSpec(memory="learned", masks=("padding", "causal"), relative="shift", position_bias=True),
    AttentionSpec(memory="sequence", masks=("input",), packing="latent"),
    AttentionSpec(memory="learned", masks=("left",), cross=True),
    AttentionSpec(memory="zeros", masks=("band",), cross=True, dropout=True),
    AttentionSpec(packing="latent", rotary="interleaved", value_size=4),
    AttentionSpec(relative="both", shared_positions=True, masks=("padding",)),
    AttentionSpec(relative="shift_select", position_bias=True, bias="table"),
    AttentionSpec(relative="shift_xl", masks=("causal",), scale="late"),
    AttentionSpec(rotary="axes", size=16, value_size=16),
    AttentionSpec(rotary="sections", masks=("causal",)),
)


@pytest.mark.parametrize("seed", (3, 5))
def test_attention_over_other_tokens_is_fused(seed: int) -> None:
    result = trial(OF_OTHER_TOKENS, seed=seed, exporter="written")
    assert not result.broken
    assert not [found.problem for found in result.found if found.problem]
    assert [found.site and found.site.status for found in result.found] == ["fused"] * len(OF_OTHER_TOKENS)


@pytest.mark.parametrize("talking", ("before", "after", "both"))
@pytest.mark.parametrize("heads", (1, 4))
def test_mixed_heads_are_declined_and_not_overlooked(talking: str, heads: int) -> None:
    spec = AttentionSpec(talking=talking, heads=heads, kv_heads=heads)
    (found,) = trial([spec], seed=1, exporter="written").found
    assert found.site is not None and found.site.status == "declined" and not found.problem


def test_written_modules_run_and_masks_mean_what_numpy_says() -> None:
    """Rows that the masks leave no key are the rows in which a -inf softmax gives no number."""
    rng, empty = random.Random(8), 0
    for _ in range(60):
        spec = for_older_exporter(draw(rng))
        spec = dataclasses.replace(
            spec, fill="-inf", softmax="plain", guard="", sink="", scale="query", project=False, weights=False, floor=""
        )
        if spec.product == "sdpa" or not spec.fits():
            continue
        space: dict[str, Any] = {}
        exec(PRELUDE + module_source(spec), space)
        given = inputs(SIZES[0], 3)
        feed = dict(given)
        if spec.time_first:
            feed |= {"x": given["x"].transpose(0, 1), "y": given["y"].transpose(0, 1)}
        with torch.no_grad():
            result = space["Attention"]().eval()(**feed).numpy()
        result = result.swapaxes(0, 1) if spec.time_first else result
        alive = rows_with_keys(spec, given)
        assert np.array_equal(np.isfinite(result).all(-1), alive), spec
        empty += (~alive).sum()
    assert empty > 0
