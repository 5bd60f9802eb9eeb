import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployml.runtime.errors import InputError
from deployml.runtime.feeds import MASKS, Case, InputSpec, draw, grid, keep_mask, role_of
from deployml.runtime.shapes import evaluate, symbols_of

TEXT = (
    InputSpec(name="input_ids", dtype="int64", shape=("batch", "sequence"), role="token-ids", bound=100),
    InputSpec(name="attention_mask", dtype="int64", shape=("batch", "sequence"), role="attention-mask"),
    InputSpec(name="position_ids", dtype="int64", shape=("batch", "sequence"), role="position-ids", bound=9),
)


def by_name(cases: tuple[Case, ...]) -> dict[str, Case]:
    found = {case.name: case for case in cases}
    assert len(found) == len(cases), "names must tell cases apart"
    return found


def test_the_grid_covers_shapes_and_masks_and_avoids_the_trace():
    cases = by_name(grid(TEXT, traced={"batch": 2, "sequence": 7}, masks=MASKS))
    shapes = {case.feeds["input_ids"].shape for case in cases.values()}
    assert {(1, 1), (1, 5)} <= shapes
    assert all(batch != 2 and sequence != 7 for batch, sequence in shapes)
    assert any(batch > 1 and sequence % 2 for batch, sequence in shapes)
    assert {name.rpartition("mask=")[2] for name in cases} == set(MASKS)
    assert any(name == "batch=1 sequence=5 mask=left" for name in cases)


def test_the_same_arguments_give_the_same_bits_and_another_seed_others():
    first, again, other = grid(TEXT), grid(TEXT), grid(TEXT, seed=1)
    for a, b in zip(first, again, strict=True):
        assert a.name == b.name
        assert all((a.feeds[k] == b.feeds[k]).all() for k in a.feeds)
    assert any((a.feeds["input_ids"] != b.feeds["input_ids"]).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_what_they_are_called(kind):
    keep = keep_mask(kind, (3, 13), np.random.default_rng(0))
    lengths = keep.sum(1)
    steps = np.diff(keep.astype(int), axis=1)
    expect = {
        "full": keep.all(),
        "right": keep[:, 0].all() and (steps <= 0).all() and (lengths < 13).all() and len(set(lengths)) == 3,
        "left": keep[:, -1].all() and (steps >= 0).all() and (lengths < 13).all() and len(set(lengths)) == 3,
        "holes": (steps > 0).any(1).all() and (lengths > 0).all(),
        "mixed": lengths[0] == 13 and len(set(lengths)) == 3,
        "one-token": lengths[-1] == 1 and keep[:-1].all(),
        "dead-row": lengths[-1] == 0 and keep[:-1].all(),
    }
    assert expect[kind]


@given(st.sampled_from(MASKS[:-1]), st.integers(1, 6), st.integers(1, 20))
def test_no_row_is_masked_out_unless_asked(kind, batch, length):
    keep = keep_mask(kind, (batch, length), np.random.default_rng(0))
    assert keep.shape == (batch, length)
    assert keep.any(1).all() or (kind == "holes" and length == 1)


def test_positions_count_real_tokens_under_left_padding_and_stay_below_their_bound():
    case = draw(TEXT, {"batch": 2, "sequence": 13}, mask="left")
    keep, positions = case.feeds["attention_mask"], case.feeds["position_ids"]
    assert positions.max() == 8
    for row in range(2):
        first = int(keep[row].argmax())
        assert (positions[row, : first + 1] == 0).all()
        assert positions[row, first + 1] == 1
    assert case.padded
    assert (case.masks[0] == keep.astype(bool)).all()


@pytest.mark.parametrize(
    ("role", "dtype", "real", "padded"),
    [
        ("attention-mask", "bool", True, False),
        ("attention-mask", "float32", 1.0, 0.0),
        ("key-padding-mask", "bool", False, True),
        ("additive-mask", "float32", 0.0, np.finfo(np.float32).min),
    ],
)
def test_each_kind_of_mask_input(role, dtype, real, padded):
    spec = InputSpec(name="m", dtype=dtype, shape=("b", 1, 1, "s"), role=role)
    case = draw([spec], {"b": 2, "s": 5}, mask="one-token")
    assert case.feeds["m"].shape == (2, 1, 1, 5)
    assert case.feeds["m"][0, 0, 0, 4] == real
    assert case.feeds["m"][1, 0, 0, 4] == padded


def test_fixed_sizes_stay_and_derived_sizes_follow():
    specs = [
        InputSpec(name="x", dtype="float32", shape=("batch", 3, "2*n")),
        InputSpec(name="past", dtype="float16", shape=("batch", "past")),
        InputSpec(name="mask", dtype="int64", shape=("batch", "past + n"), role="attention-mask"),
    ]
    for case in grid(specs):
        sizes = case.sizes
        assert case.feeds["x"].shape == (sizes["batch"], 3, 2 * sizes["n"])
        assert case.feeds["mask"].shape == (sizes["batch"], sizes["past"] + sizes["n"])
        assert sizes["n"] == 1 or sizes["n"] != sizes["past"]
    assert len(grid([InputSpec(name="x", dtype="float32", shape=(1, 3, 8))])) == 1


def test_sequence_first_models_get_their_batch_from_the_mask():
    specs = [
        InputSpec(name="src", dtype="float32", shape=("s", "k", 8)),
        InputSpec(name="mask", dtype="bool", shape=("k", "s"), role="key-padding-mask"),
    ]
    assert all(case.sizes["k"] <= 5 for case in grid(specs))
    assert max(case.sizes["s"] for case in grid(specs)) == 13


def test_no_row_is_shorter_than_a_model_takes():
    cases = grid(TEXT, limits={"sequence": (40, None)})
    masks = [mask for case in cases for mask in case.masks]
    assert min(int(mask.sum(-1).min()) for mask in masks) == 40 and any(case.padded for case in cases)
    short = [mask for case in grid(TEXT, limits={"sequence": (2, None)}) for mask in case.masks]
    assert min(int(mask.sum(-1).min()) for mask in short) == 1


def test_limits_hold():
    cases = grid(TEXT, limits={"batch": (1, 1), "sequence": (2, 6)})
    assert all(c.sizes["batch"] == 1 and 2 <= c.sizes["sequence"] <= 6 for c in cases)
    assert any(c.padded for c in cases)


@pytest.mark.parametrize(
    ("name", "dtype", "role"),
    [
        ("input_ids", "int64", "token-ids"),
        ("decoder_input_ids", "int64", "token-ids"),
        ("attention_mask", "int64", "attention-mask"),
        ("src_key_padding_mask", "bool", "key-padding-mask"),
        ("src_padding_mask", "bool", "key-padding-mask"),
        ("padding_mask", "int64", "attention-mask"),
        ("past_values_padding", "int64", "key-padding-mask"),
        ("padded_input_ids", "int64", "token-ids"),
        ("pad_id", "int64", "values"),
        ("position_ids", "int64", "position-ids"),
        ("token_type_ids", "int64", "token-type-ids"),
        ("pixel_values", "float32", "values"),
    ],
)
def test_roles_from_names(name, dtype, role):
    assert role_of(name, dtype) == role


def test_errors():
    with pytest.raises(InputError, match="without inputs"):
        grid([])
    with pytest.raises(InputError, match="unknown dtype 'floaty'"):
        draw([InputSpec(name="x", dtype="floaty", shape=(1,))], {})


@pytest.mark.parametrize(
    ("text", "symbols", "value"),
    [
        ("s", ("s",), 5),
        ("s + past", ("s", "past"), 8),
        ("2*(s - 1)//past", ("s", "past"), 2),
        ("max(s, past)", ("s", "past"), 5),
        ("-s + 9", ("s",), 4),
    ],
)
def test_expressions(text, symbols, value):
    assert symbols_of(text) == symbols
    assert evaluate(text, {"s": 5, "past": 3}) == value


@pytest.mark.parametrize("text", ["s.real", "__import__('os')", "s if s else 1", "t", "s // 0", "((((", "s" * 1000])
def test_expressions_that_are_not_arithmetic(text):
    with pytest.raises(InputError, match="cannot be computed"):
        evaluate(text, {"s": 5})


def test_a_mask_over_past_and_sequence_says_which_new_tokens_are_real():
    specs = [
        InputSpec(name="input_ids", dtype="int64", shape=("batch", "seq"), role="token-ids", bound=50),
        InputSpec(name="attention_mask", dtype="int64", shape=("batch", "past + seq"), role="attention-mask"),
    ]
    case = draw(specs, {"batch": 3, "seq": 4, "past": 5}, mask="left", seed=0)
    whole, new = case.masks
    assert whole.shape == (3, 9) and new.shape == (3, 4)
    assert np.array_equal(new, whole[:, 5:])
