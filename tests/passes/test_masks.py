"""What each way to write a mask is read as, and what must not be read as anything."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from deployml.passes.masks import (
    Always,
    Causal,
    KeyLengths,
    KeyPadding,
    MaskFacts,
    Memo,
    Window,
    analyse,
    describe,
    entails_causal,
    is_only_causal,
    key_padding_only,
    window_of,
)
from deployml.passes.masks.poly import parse_size

from .mask_graphs import BUFFER, MODES, Graph, Mode, check, keeps

D = ir.DataType
LOWEST = float(np.finfo(np.float32).min)
Write = Callable[[Graph], ir.Value]


def _facts(write: Write, mode: str, *, forbids: bool = False) -> MaskFacts:
    """Facts of a mask, checked at every size of the mode."""
    graph = Graph(MODES[mode])
    mask = write(graph)
    facts = analyse(mask, query_dim=MODES[mode].query, key_dim=MODES[mode].key, forbids=forbids)
    assert facts is not None
    assert check(graph, mask, facts, seed=5, forbids=forbids) > 0
    return facts


def _causal(g: Graph) -> ir.Value:
    return g.op("LessOrEqual", g.j(), g.i())


def _four(g: Graph, name: str) -> ir.Value:
    return g.unsqueeze(g.inputs[name], 1, 2)


def _cut(g: Graph, array: np.ndarray, dtype: type) -> ir.Value:
    part = g.op("Slice", g.const(array, dtype), g.const([0]), g.vector("query"), g.const([0]))
    return g.op("Slice", part, g.const([0]), g.vector("key"), g.const([1]))


def _tril(dtype: type) -> Write:
    return lambda g: g.op("Cast", _cut(g, np.tril(np.ones((BUFFER, BUFFER))), dtype), to=D.BOOL)


def _square_subsequent(g: Graph) -> ir.Value:
    """triu of ones, transposed, filled twice: the classic of torch tutorials."""
    shape = g.op("Concat", g.vector("query"), g.vector("key"), axis=0)
    ones = g.op("ConstantOfShape", shape, value=ir.tensor(np.array([1], np.float32)))
    mask = g.op("Trilu", ones, upper=0)
    zero, one = (g.const(v, np.float32) for v in (0.0, 1.0))
    first = g.op("Where", g.op("Equal", mask, zero), g.const(-np.inf, np.float32), mask)
    return g.op("Where", g.op("Equal", first, one), zero, first)


def _distance(g: Graph, op: str, width: int) -> ir.Value:
    return g.op(op, g.op("Abs", g.op("Sub", g.i(), g.j())), g.const(width))


def _window(g: Graph, width: int) -> ir.Value:
    return g.op("Less", g.op("Sub", g.i(), g.j()), g.const(width))


def _past_causal(g: Graph) -> ir.Value:
    past = g.op("Sub", g.size("key"), g.size("query"))
    return g.op("LessOrEqual", g.j(), g.op("Add", g.i(), past))


@pytest.mark.parametrize("dtype", [np.bool_, np.float32, np.int64, np.uint8])
@pytest.mark.parametrize("mode", ["same", "free"])
def test_a_stored_triangle_is_causal(dtype: type, mode: str) -> None:
    facts = _facts(_tril(dtype), mode)
    assert is_only_causal(facts) and entails_causal(facts)
    assert facts.conjuncts == (Causal(0, lower_right=mode == "same"),)
    assert facts.axes == {"query", "key"}


def test_a_float_buffer_of_minus_infinity_is_causal() -> None:
    array = np.triu(np.full((BUFFER, BUFFER), -np.inf), 1)
    facts = _facts(lambda g: _cut(g, array, np.float32), "same")
    assert is_only_causal(facts)
    assert (facts.kind, facts.fill) == ("additive", -np.inf)


def test_the_triangle_of_torch_tutorials_is_causal() -> None:
    facts = _facts(_square_subsequent, "same")
    assert is_only_causal(facts) and facts.fill == -np.inf


@pytest.mark.parametrize("width", [1, 2, 3, 6, 40])
def test_windows_are_exact_at_their_bounds(width: int) -> None:
    facts = _facts(lambda g: g.op("And", _causal(g), _window(g, width)), "same")
    assert facts.conjuncts == (Causal(0, lower_right=True), Window(left=width))
    assert window_of(facts) == Window(width)


@pytest.mark.parametrize(("op", "width", "visible"), [("LessOrEqual", 2, 3), ("Less", 2, 2), ("Less", 1, 1)])
def test_symmetric_windows_are_exact_at_their_bounds(op: str, width: int, visible: int) -> None:
    facts = _facts(lambda g: _distance(g, op, width), "free")
    assert facts.conjuncts[-1] in (Window(visible, visible), Window(left=visible))
    assert not facts.residual


def test_a_window_after_a_past_moves_with_the_diagonal() -> None:
    def write(g: Graph) -> ir.Value:
        past = g.op("Sub", g.size("key"), g.size("query"))
        recent = g.op("Less", g.op("Sub", g.op("Add", g.i(), past), g.j()), g.const(3))
        return g.op("And", _past_causal(g), recent)

    facts = _facts(write, "past")
    assert facts.conjuncts == (Causal("P", lower_right=True), Window(3, offset="P"))
    assert not entails_causal(facts)


@pytest.mark.parametrize(("mode", "offset"), [("past", "P"), ("free", "T - S"), ("same", 0)])
def test_lower_right_causality_is_named_only_when_proven(mode: str, offset: int | str) -> None:
    facts = _facts(_past_causal, mode)
    assert facts.conjuncts == (Causal(offset, lower_right=True),)
    assert entails_causal(facts) is (offset == 0)


def test_upper_left_is_not_lower_right_when_sizes_differ() -> None:
    assert _facts(_causal, "free").conjuncts == (Causal(0, lower_right=False),)


@pytest.mark.parametrize(("name", "how"), [("flags", "nonzero"), ("mask", "nonzero"), ("weights", "nonzero")])
def test_flags_are_key_padding(name: str, how: str) -> None:
    facts = _facts(lambda g: g.op("Cast", _four(g, name), to=D.BOOL), "free")
    (item,) = facts.conjuncts
    assert isinstance(item, KeyPadding) and (item.value.name, item.how) == (name, how)
    assert key_padding_only(facts) and facts.exact


def test_padding_that_marks_the_padded_is_read_with_its_sign() -> None:
    facts = _facts(lambda g: _four(g, "flags"), "free", forbids=True)
    (item,) = facts.conjuncts
    assert isinstance(item, KeyPadding) and item.how == "zero"


def test_tokens_that_differ_from_the_pad_token_are_key_padding() -> None:
    def write(g: Graph) -> ir.Value:
        return g.unsqueeze(g.op("Not", g.op("Equal", g.inputs["segments"], g.const(1))), 1, 2)

    facts = _facts(write, "free")
    assert key_padding_only(facts) and facts.exact


def test_a_factor_on_flags_says_what_it_assumes() -> None:
    def write(g: Graph) -> ir.Value:
        inverted = g.op("Sub", g.const(1.0, np.float32), _four(g, "weights"))
        return g.op("Mul", inverted, g.const(-10000.0, np.float32))

    facts = _facts(write, "free")
    assert key_padding_only(facts) and facts.assumes_binary and not facts.exact and facts.fill == -10000.0


def test_lengths_are_read_with_their_offset() -> None:
    def write(g: Graph) -> ir.Value:
        return g.op("LessOrEqual", g.arange("key"), g.unsqueeze(g.inputs["lengths"], 1, 2, 3))

    facts = _facts(write, "free")
    (item,) = facts.conjuncts
    assert isinstance(item, KeyLengths) and (item.value.name, item.offset, item.batch_axis) == (
        "lengths",
        1,
        0,
    )


def test_a_bias_is_set_apart_from_the_mask() -> None:
    def write(g: Graph) -> ir.Value:
        causal = g.op("Where", _causal(g), g.const(0.0, np.float32), g.const(LOWEST, np.float32))
        return g.op("Add", g.inputs["table"], causal)

    facts = _facts(write, "same")
    assert [v.name for v in facts.additive] == ["table"]
    assert entails_causal(facts) and not is_only_causal(facts)
    assert describe(facts)["mask"] == "causal+bias"


def test_a_small_penalty_is_a_bias_and_no_mask() -> None:
    def write(g: Graph) -> ir.Value:
        return g.op("Where", _causal(g), g.const(0.0, np.float32), g.const(-5.0, np.float32))

    facts = _facts(write, "same")
    assert facts.conjuncts == (Always(),) and len(facts.additive) == 1


def test_comparisons_that_always_hold_are_no_facts() -> None:
    def write(g: Graph) -> ir.Value:
        inside = g.op("Less", g.j(), g.size("key"))
        return g.op("And", g.op("GreaterOrEqual", g.i(), g.const(0)), inside)

    assert _facts(write, "free").conjuncts == (Always(),)


def _prefix(g: Graph) -> ir.Value:
    return g.op("Or", _causal(g), g.op("Less", g.j(), g.const(3)))


def _prefix_by_lengths(g: Graph) -> ir.Value:
    inside = g.op("Less", g.arange("key"), g.unsqueeze(g.inputs["lengths"], 1, 2, 3))
    return g.op("Or", _causal(g), inside)


def _packed(g: Graph) -> ir.Value:
    return g.op("Equal", g.unsqueeze(g.inputs["rows"], 1, 3), _four(g, "segments"))


def _positions(g: Graph) -> ir.Value:
    return g.op("LessOrEqual", g.j(), g.unsqueeze(g.inputs["rows"], 1, 3))


def _gathered_triangle(g: Graph) -> ir.Value:
    picked = g.op("Gather", g.const(np.tril(np.ones((BUFFER, BUFFER))), np.bool_), g.inputs["rows"], axis=0)
    return g.unsqueeze(g.op("Slice", picked, g.const([0]), g.vector("key"), g.const([2])), 1)


def _holes(g: Graph) -> ir.Value:
    array = np.tril(np.ones((BUFFER, BUFFER)))
    array[3, 1] = 0
    return g.op("Cast", _cut(g, array, np.bool_), to=D.BOOL)


def _negative_positions(g: Graph) -> ir.Value:
    """tril[i - 1]: row 0 wraps round to the last one."""
    rows = g.op("Sub", g.arange("query"), g.const(1))
    picked = g.op("Gather", g.const(np.tril(np.ones((BUFFER, BUFFER))), np.bool_), rows, axis=0)
    return g.op("Slice", picked, g.const([0]), g.vector("key"), g.const([1]))


def _one_row(g: Graph) -> ir.Value:
    """The first row of a causal mask, broadcast over all queries."""
    return g.op("Slice", _causal(g), g.const([0]), g.const([1]), g.const([0]))


@pytest.mark.parametrize(
    "write",
    [
        _prefix,
        _prefix_by_lengths,
        _packed,
        _positions,
        _gathered_triangle,
        _holes,
        _negative_positions,
        _one_row,
    ],
)
@pytest.mark.parametrize("mode", ["same", "free"])
def test_what_looks_causal_and_is_not_is_never_called_causal(write: Write, mode: str) -> None:
    facts = _facts(write, mode)
    assert facts.residual and not entails_causal(facts)
    assert not any(isinstance(c, Causal | Window) for c in facts.conjuncts)


def test_a_part_that_is_not_understood_leaves_the_others_proven() -> None:
    facts = _facts(lambda g: g.op("And", _causal(g), _packed(g)), "same")
    assert facts.residual and entails_causal(facts) and not is_only_causal(facts)
    assert describe(facts)["mask"] == "causal+other"


def test_an_axis_that_might_be_broadcast_proves_nothing() -> None:
    """A mask of an unrelated size may have one row for all queries."""
    value = ir.Value(name="u", type=ir.TensorType(D.FLOAT), shape=ir.Shape(["U", "V"]))
    shape = ir.node("Shape", [value])
    ones = ir.node("ConstantOfShape", [shape.outputs[0]], attributes={"value": ir.tensor(np.array([1], np.int64))})
    cut = ir.node("Trilu", [ones.outputs[0]], attributes={"upper": 0})
    mask = ir.node("Cast", [cut.outputs[0]], attributes={"to": int(D.BOOL)})
    unrelated = analyse(mask.outputs[0], query_dim="S", key_dim="T")
    assert unrelated is not None and unrelated.residual and not unrelated.conjuncts
    unknown = analyse(mask.outputs[0], query_dim=None, key_dim=None)
    assert unknown is not None and unknown.residual and not unknown.conjuncts
    same = analyse(mask.outputs[0], query_dim="U", key_dim="V")
    assert same is not None and is_only_causal(same)


def test_an_output_cannot_be_written_into_a_wrapping_dtype() -> None:
    """0 - 1 is 255 in uint8: arithmetic there is not that of integers."""

    def write(g: Graph) -> ir.Value:
        index = g.op("Cast", g.op("Sub", g.i(), g.j()), to=D.UINT8)
        return g.op("GreaterOrEqual", g.op("Cast", index, to=D.INT64), g.const(0))

    facts = _facts(write, "same")
    assert not entails_causal(facts)


def test_every_band_of_a_stored_array_is_read_exactly() -> None:
    rows, columns = 4, 5
    diagonal = np.arange(columns)[None, :] - np.arange(rows)[:, None]
    for low in range(-rows, columns):
        for high in range(low, columns + 1):
            array = (diagonal >= low) & (diagonal <= high)
            value = Graph(MODES["same"]).const(array, np.bool_)
            facts = analyse(value, query_dim=rows, key_dim=columns)
            assert facts is not None
            if facts.residual:
                assert not array.any()
                continue
            mode = Mode("4", "5", ())
            np.testing.assert_array_equal(keeps(facts, {}, mode, {"B": 1, "S": rows})[0, 0], array)


def test_all_keys_but_the_last_are_not_all_keys() -> None:
    def write(g: Graph) -> ir.Value:
        return g.op("Less", g.j(), g.op("Sub", g.size("key"), g.const(1)))

    assert key_padding_only(_facts(write, "free"))


def test_rows_counted_from_the_end_are_not_rows_from_the_start() -> None:
    """The last S rows of a causal (T, T)."""

    def write(g: Graph) -> ir.Value:
        square = g.op("LessOrEqual", g.j(), g.unsqueeze(g.arange("key"), 1))
        last = g.op("Neg", g.vector("query"))
        cut = g.op("Slice", square, last, g.vector("key"), g.const([0]))
        cut.shape = ir.Shape([g.mode.query, g.mode.key])
        return cut

    assert not entails_causal(_facts(write, "past"))


def test_flags_cut_from_a_longer_tensor_are_named_as_cut() -> None:
    long = ir.Value(name="long", type=ir.TensorType(D.BOOL), shape=ir.Shape(["B", 16]))
    g = Graph(MODES["same"])
    cut = g.op("Slice", long, g.const([0]), g.const([4]), g.const([1]))
    facts = analyse(g.unsqueeze(cut, 1, 2), query_dim=4, key_dim=4)
    assert facts is not None
    (item,) = facts.conjuncts
    assert isinstance(item, KeyPadding) and item.value is not long and not facts.residual


def _rounds_away(g: Graph) -> ir.Value:
    """1e-9 + 1 is 1 in float32."""
    one = g.const(1.0, np.float32)
    return g.op("Equal", g.op("Add", _four(g, "weights"), one), one)


def _rounds_back(g: Graph) -> ir.Value:
    """(1e-9 + 1) - 1 is 0 in float32."""
    one = g.const(1.0, np.float32)
    return g.op("Cast", g.op("Sub", g.op("Add", _four(g, "weights"), one), one), to=D.BOOL)


@pytest.mark.parametrize("write", [_rounds_away, _rounds_back])
def test_rounding_is_not_algebra(write: Write) -> None:
    facts = _facts(write, "free")
    assert not any(isinstance(c, KeyPadding) and c.value.name == "weights" for c in facts.conjuncts)


def test_sites_share_what_was_found() -> None:
    graph = Graph(MODES["same"])
    mask = _causal(graph)
    memo = Memo()
    first = analyse(mask, query_dim="S", key_dim="S", memo=memo)
    count = len(memo.tensors)
    assert analyse(mask, query_dim="S", key_dim="S", memo=memo) == first
    assert len(memo.tensors) == count > 0


def test_a_long_chain_is_walked_once_and_without_recursion() -> None:
    graph = Graph(MODES["same"])
    value = graph.inputs["table"]
    for _ in range(3000):
        value = graph.op("Add", value, graph.inputs["table"])
    facts = analyse(value, query_dim="S", key_dim="S")
    assert facts is not None and not facts.residual and facts.additive


def test_broken_graphs_are_met_with_nothing_known() -> None:
    bare = ir.Value(name="bare")
    text = ir.Value(name="text", type=ir.TensorType(D.STRING), shape=ir.Shape([2, 2]))
    deep = ir.Value(name="deep", type=ir.TensorType(D.BOOL), shape=ir.Shape([1, 1, 1, "S", "S"]))
    whole = ir.Value(name="whole", type=ir.TensorType(D.INT64), shape=ir.Shape(["S", "S"]))
    for value in (bare, text, deep, whole):
        assert analyse(value, query_dim="S", key_dim="S") is None
    flags = ir.Value(name="flags", type=ir.TensorType(D.BOOL), shape=ir.Shape(["S", "S"]))
    for op in sorted(_every_operator()):
        for inputs in ([], [None], [bare], [flags], [flags, None], [whole, text], [flags, whole, bare, None]):
            node = ir.node(op, inputs)
            facts = analyse(node.outputs[0], query_dim="S", key_dim="S")
            assert facts is None or isinstance(facts, MaskFacts)


def _every_operator() -> set[str]:
    from deployml.passes.masks import layout, pointwise, source

    return {*layout.HANDLERS, *pointwise.HANDLERS, *source.HANDLERS}


def test_sizes_are_read_as_polynomials() -> None:
    assert parse_size("past + sequence") == parse_size("sequence + past")
    assert parse_size("(sequence**2)//sequence") == parse_size("sequence")
    assert parse_size("2*s + 1 - s") == parse_size("s+1")
    assert parse_size("s//2") != parse_size("s")
    assert parse_size("max(1, s") is not None
    assert parse_size(None) is None
