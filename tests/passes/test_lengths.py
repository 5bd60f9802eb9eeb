"""Lengths that are computed: what shape inference says of them is what onnxruntime finds."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from deployml.passes.cleanup import infer_shapes
from deployml.passes.example_text import graph_text
from deployml.passes.symbols import at_least, ratio, same_dim, size_of

S, T, B = (ir.SymbolicDim(name) for name in "stb")
SIZES = ({"b": 2, "s": 5, "t": 7}, {"b": 3, "s": 8, "t": 2}, {"b": 1, "s": 1, "t": 1})

_SLICED = "a = Constant <value_ints = [1]> () l = Constant <value_ints = [9223372036854775807]> ()"


def _slice(step: int = 1) -> str:
    return (
        f"{_SLICED} o = Constant <value_ints = [{0 if step > 1 else 1}]> () "
        f"p = Constant <value_ints = [{step}]> () y = Slice (x, o, l, a, p)"
    )


_HALF = "n = Shape <start = 1, end = 2> (x) two = Constant <value_ints = [2]> ()"
_CASES = {
    "every second": ("float[b,s,4] x", _slice(2), "b (s+1)//2 4"),
    "all but the first": ("float[b,s,4] x", _slice(), "b s-1 4"),
    "side by side": ("float[b,s,4] x, float[b,t,4] z", "y = Concat <axis = 1> (x, z, x)", "b 2*s+t 4"),
    "convolution": (
        "float[b,4,s] x, float[6,4,3] w",
        "y = Conv <kernel_shape = [3], strides = [2], pads = [1, 1]> (x, w)",
        "b 6 (s+1)//2",
    ),
    "spread convolution": (
        "float[b,4,s] x, float[6,4,3] w",
        "y = Conv <kernel_shape = [3], dilations = [2], pads = [3, 1]> (x, w)",
        "b 6 s",
    ),
    "pooling": (
        "float[b,4,s,6] x",
        "y = AveragePool <kernel_shape = [2, 3], strides = [1, 3], pads = [1, 0, 0, 0]> (x)",
        "b 4 s 2",
    ),
    "padded to a multiple": (
        "float[b,s,4] x",
        f"{_HALF} odd = Mod (n, two) o = Constant <value_ints = [0]> () "
        "p = Concat <axis = 0> (o, o, o, o, odd, o) y = Pad (x, p)",
        "b s+s%2 4",
    ),
    "windows": (
        "float[b,s,4] x",
        f"{_HALF} odd = Mod (n, two) o = Constant <value_ints = [0]> () "
        "p = Concat <axis = 0> (o, o, o, o, odd, o) q = Pad (x, p) "
        "v = Constant <value_ints = [-1, 2, 4]> () y = Reshape (q, v)",
        "(b*s+b*(s%2))//2 2 4",
    ),
    "half a length": (
        "float[b,s,4] x",
        f"{_HALF} more = Add (n, two) h = Div (more, two) y = ConstantOfShape (h)",
        "(s+2)//2",
    ),
    "a range that starts late": (
        "float[b,s,4] x",
        "two = Constant <value_ints = [2]> () o = Constant <value_int = 1> () d = Constant <value_int = 1> () "
        "n = Shape <start = 1, end = 2> (x) m = Add (n, two) e = Squeeze (m) y = Range (o, e, d)",
        "s+1",
    ),
    "a part": (
        "float[b,s,12] x",
        f"{_HALF} c = Concat <axis = 1> (x, x) k = Constant <value_ints = [4, 8]> () q, y = Split <axis = -1> (c, k)",
        "b 2*s 8",
    ),
    "letters": ("float[b,4,s] x, float[b,t,4] z", 'y = Einsum <equation = "bhs,bth->sbt"> (x, z)', "s b t"),
    "picked by index": ("float[b,s,4] x, int64[b,t,4] i", "y = GatherElements <axis = 1> (x, i)", "b t 4"),
}


@pytest.mark.parametrize("case", _CASES.values(), ids=_CASES)
def test_lengths_are_computed(case: tuple[str, str, str]) -> None:
    inputs, body, expected = case
    model = _model(inputs, body, "int64 y" if "Range" in body else "float y")
    shape = model.graph.outputs[0].shape
    assert shape is not None
    wanted = [eval(text, {"b": B, "s": S, "t": T}) for text in expected.split()]
    assert len(shape) == len(wanted)
    assert all(same_dim(a, b) for a, b in zip(shape, wanted, strict=True)), str(shape)
    for sizes in SIZES:
        said = [d if isinstance(d, int) else size_of(d, sizes) for d in shape]
        assert list(_run(model, sizes).shape) == said


def _model(inputs: str, body: str, result: str = "float y") -> ir.Model:
    model = ir.from_onnx_text(graph_text(inputs, result, body))
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    return model


def _run(model: ir.Model, sizes: dict[str, int]) -> np.ndarray:
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None and value.dtype is not None
        shape = [d if isinstance(d, int) else size_of(d, sizes) for d in value.shape]
        feeds[str(value.name)] = np.zeros(shape, value.dtype.numpy())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("axis", ("s", "4"))
def test_a_slice_of_what_may_be_shorter_is_not_guessed(axis: str) -> None:
    upto = _slice().replace(
        "l = Constant <value_ints = [9223372036854775807]> ()", "l = Shape <start = 0, end = 1> (x)"
    )
    model = _model(f"float[b,{axis},4] x", upto)
    shape = model.graph.outputs[0].shape
    assert shape is not None and not isinstance(shape[1], int)
    assert shape[1].value is None, "b may be longer than the axis, or shorter than the start"


def test_a_name_that_is_no_expression_stays_what_it_is() -> None:
    body = "v = Constant <value_ints = [-1, 32]> () r = Reshape (x, v) y = Concat <axis = 0> (r, r)"
    model = ir.from_onnx_text(graph_text("float[b,4,8] x", "float y", body))
    model.graph.inputs[0].shape = ir.Shape(["seq len", 4, 8])
    model.graph.outputs[0].shape = None
    infer_shapes(model)
    between = next(n for n in model.graph if n.op_type == "Reshape").outputs[0]
    assert between.shape is not None and str(between.shape[0]) == "seq len"
    assert model.graph.outputs[0].shape is not None and model.graph.outputs[0].shape[1] == 32


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (S + T - 1, T, True), (S, 1, True), (S, 2, False), (S + S % 2, S, True), (S, S // 2, True),
        (S // 2, 0, True), (S // 2, 1, False), (S - S % 2, 0, True), (40 - S, 0, False), (S * T, T, False),
        (2 * S, S + 1, True), (7, 7, True), (ir.SymbolicDim("seq len"), 1, False), (S, T, False),
    ],
)  # fmt: skip
def test_what_is_at_least_something(left: ir.SymbolicDim, right: ir.SymbolicDim, expected: bool) -> None:
    assert at_least(left, right) == expected


@pytest.mark.parametrize(
    ("over", "under", "expected"),
    [
        ([B * S, 4], [B, 4], S), ([B * S + B * T, 4], [B], 4 * (S + T)), ([8 * B, 32], [128], 2 * B),
        ([S + S % 2, 4], [8], (S + S % 2) // 2), ([B, 4], [S], None), ([ir.SymbolicDim("seq len"), 4], [2], None),
        ([12], [4], 3),
    ],
)  # fmt: skip
def test_how_often_a_product_goes_into_another(over: list[object], under: list[object], expected: object) -> None:
    found = ratio(over, under)
    assert found is None if expected is None else same_dim(found, expected)


def test_one_length_said_in_two_ways_is_one() -> None:
    assert same_dim((T - 1) // 2 + 1, (T + 1) // 2)
    assert same_dim(2 * (B * S), S * B * 2)
    assert not same_dim((T + 1) // 2, T // 2)


def test_an_unknown_length_is_named_by_one_word_whatever_its_value_is_called():
    text = graph_text("float[b,4] x", "float[2,n] y", "z = NonZero (x) y = Cast <to = 1> (z)")
    model = ir.from_onnx_text(text)
    made = model.graph.node(0).outputs[0]
    made.name = "no-op.3_out"
    infer_shapes(model)
    assert made.shape is not None and str(made.shape[1].value).isidentifier()
    other = ir.SymbolicDim("no-op.3_out_d1")  # of a file that names its lengths so
    assert same_dim(other, ir.SymbolicDim("no-op.3_out_d1"))
    assert not same_dim(other, ir.SymbolicDim("no-op.4_out_d1"))
    assert not at_least(other, S)
