"""Example inputs: given as text, by a file or by the caller, or derived from what the model says of itself."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from deployml.exporter.inputs import InputSpec, parse_specs
from deployml.exporter.inputs.sizes import SizeChooser, numbers_of
from deployml.exporter.inputs.spec import DTYPES
from deployml.exporter.load import load
from deployml.runtime.errors import InputError


class Two(nn.Module):
    """Ids and a mask, both needed; a plain flag."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.layer = nn.Linear(16, 4)

    def forward(self, ids, mask, scale: float = 1.0):
        return self.layer(self.embed(ids)) * mask[..., None] * scale


def names(shapes) -> dict:
    """``dynamic_shapes`` with names in the place of Dim objects."""
    return {k: {axis: dim.__name__ for axis, dim in v.items()} if v else None for k, v in shapes.items()}


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("ids:int64[batch,seq]", InputSpec("ids", "int64", ("batch", "seq"))),
        (" x : float [ b , 3 , 224 ] ", InputSpec("x", "float32", ("b", 3, 224))),
        ("t:torch.float16[]", InputSpec("t", "float16", ())),
        ("m:BOOL[1,n_1]", InputSpec("m", "bool", (1, "n_1"))),
    ],
)
def test_text_is_parsed(text, spec):
    assert parse_specs([text]) == (spec,)


names_of_dims = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.integers(1, 9999), names_of_dims), max_size=5),
    st.sampled_from(DTYPES),
    names_of_dims,
)
def test_text_round_trips(dims, dtype, name):
    spec = InputSpec(name, dtype, tuple(dims))
    assert parse_specs([str(spec)]) == (spec,)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused(text):
    try:
        parse_specs([text])
    except InputError as error:
        assert error.hint


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["ids"], ["NAME:DTYPE[DIMS]"]),
        (["ids:int64"], ["NAME:DTYPE[DIMS]"]),
        (["ids:int64[batch"], ["NAME:DTYPE[DIMS]"]),
        ([":int64[2]"], ["NAME:DTYPE[DIMS]"]),
        (["2x:int64[2]"], ["no name"]),
        (["ids:int46[b]"], ["no dtype 'int46'", "Did you mean int"]),
        (["ids:complex64[b]"], ["no dtype", "Known: float32"]),
        (["ids:int64[b,,s]"], ["neither a size nor a name"]),
        (["ids:int64[b,-1]"], ["neither a size nor a name"]),
        (["ids:int64[b,2.5]"], ["neither a size nor a name"]),
        (["ids:int64[b,0]"], ["cannot have size 0"]),
        (["ids:int64[b,99999999999]"], ["cannot have size"]),
        (["ids:int64[b;s]"], ["neither a size nor a name"]),
        (["a:int64[b]", "c:bool[b]", "a:int64[b]"], ["a twice"]),
    ],
)
def test_wrong_text(texts, words):
    with pytest.raises(InputError) as error:
        parse_specs(texts)
    for word in words:
        assert word in str(error.value), str(error.value)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["ids:int64[b,s]"], ["also needs mask", "--input mask:bool[batch,seq]"]),
        (["ids:int64[b,s]", "msk:bool[b,s]"], ["no parameter msk", "Did you mean mask"]),
        (["foo:int64[b,s]"], ["no parameter foo", "ids, mask, scale"]),
    ],
)
def test_text_that_does_not_fit_forward(texts, words):
    with pytest.raises(InputError) as error:
        load(Two(), inputs=texts)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_text_gives_inputs_and_axes():
    loaded = load(Two(), inputs=("ids:int64[batch,seq]", "mask:float32[batch,seq]"))
    ids, mask = loaded.kwargs["ids"], loaded.kwargs["mask"]
    assert ids.shape == mask.shape
    assert 0 <= int(ids.min()) <= int(ids.max()) < 50
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert bool((mask.sum(-1) > 0).all())
    assert names(loaded.dynamic_shapes) == {"ids": {0: "batch", 1: "seq"}, "mask": {0: "batch", 1: "seq"}}
    assert loaded.dynamic_shapes["ids"][0] is loaded.dynamic_shapes["mask"][0]
    program = torch.export.export(loaded.module, loaded.args, dict(loaded.kwargs), dynamic_shapes=loaded.dynamic_shapes)
    assert len(program.range_constraints) == 2


def test_chosen_sizes_are_no_numbers_of_the_model():
    loaded = load(Two(), inputs=("ids:int64[batch,seq]", "mask:bool[batch,seq]"))
    sizes = set(loaded.kwargs["ids"].shape)
    assert len(sizes) == 2
    assert min(sizes) >= 2
    assert not sizes & numbers_of(Two())


def test_sizes_grow_until_the_model_runs():
    model = nn.Sequential(nn.Conv1d(1, 4, 200, stride=20), nn.Conv1d(4, 4, 9))
    loaded = load(model, inputs=("input:float32[items,1,length]",))
    items, _, length = loaded.kwargs["input"].shape
    assert items < 10 and 4096 <= length < 4200
    assert [note for note in loaded.notes if f"length is {length}: the model does not run on the small" in note]


class Remembers(nn.Module):
    """Keeps a table as long as the longest input so far."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(0), persistent=False)
        self.seen = {}

    def forward(self, x):
        if self.table.shape[0] < x.shape[-1]:
            self.register_buffer("table", torch.arange(x.shape[-1]) * 1.0, persistent=False)
        self.seen[x.shape[-1]] = True
        self.last = x.shape[-1]
        return x + self.table[: x.shape[-1]]


def test_what_a_model_keeps_from_the_trial_is_forgotten():
    loaded = load(Remembers(), inputs=("x:float32[batch,length]",))
    with loaded:
        assert loaded.module.table.shape == (0,) and not loaded.module.seen and not hasattr(loaded.module, "last")


def test_the_batch_does_not_grow():
    class TimeFirst(nn.Module):
        def forward(self, x):
            assert x.shape[0] >= 100
            return x * 2

    loaded = load(TimeFirst(), inputs=("x:float32[time,batch,8]",))
    assert loaded.kwargs["x"].shape[0] >= 256 and loaded.kwargs["x"].shape[1] < 20


def test_sizes_stay_where_no_size_helps():
    loaded = load(nn.Linear(4, 4), inputs=("input:float32[items,length,5]",))
    assert max(loaded.kwargs["input"].shape) < 20
    assert not [note for note in loaded.notes if "small" in note]


def test_same_call_gives_same_values():
    first, second = (load(Two(), inputs=("ids:int64[b,s]", "mask:float32[b,s]")) for _ in range(2))
    assert all(torch.equal(first.kwargs[name], second.kwargs[name]) for name in first.kwargs)


def test_key_padding_mask_of_torch_marks_padding():
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    texts = ("src:float32[batch,seq,16]", "src_key_padding_mask:bool[batch,seq]")
    with load(model, inputs=texts) as loaded:
        mask = loaded.kwargs["src_key_padding_mask"]
        assert not mask[0].any()
        assert mask[-1].any()
        assert not mask.all(-1).any()
        assert torch.isfinite(loaded.module(**loaded.kwargs)).all()


def test_multihead_attention():
    texts = [f"{name}:float32[batch,seq,16]" for name in ("query", "key", "value")]
    loaded = load(nn.MultiheadAttention(16, 4, batch_first=True), inputs=texts)
    assert loaded.module(**loaded.kwargs)[0].shape == loaded.kwargs["query"].shape
    assert not torch.equal(loaded.kwargs["query"], loaded.kwargs["key"])


def test_positional_only_parameters():
    class Positional(nn.Linear):
        def forward(self, x, /, bias=None):
            return super().forward(x)

    loaded = load(Positional(8, 8), inputs=("x:float32[b,8]",))
    assert [tuple(a.shape[1:]) for a in loaded.args] == [(8,)]
    assert not loaded.kwargs
    torch.export.export(loaded.module, loaded.args, {}, dynamic_shapes=loaded.dynamic_shapes)


def test_variadic_keyword_parameters_go_by_their_own_names():
    class Variadic(nn.Linear):
        def forward(self, **inputs):
            return super().forward(inputs["x"])

    loaded = load(Variadic(8, 8), inputs=("x:float32[b,8]",))
    assert names(loaded.dynamic_shapes) == {"x": {0: "b"}}


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Two(), "--input ids:int64[batch,seq] --input mask:bool[batch,seq]"),
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "--input input:float32[batch,3,224,224]"),
        (nn.Linear(12, 8), "--input input:float32[batch,seq,12]"),
        (nn.Sequential(nn.Embedding(9, 8)), "--input input:int64[batch,seq]"),
    ],
)
def test_model_that_does_not_say_what_it_takes(model, line):
    with pytest.raises(InputError) as error:
        load(model)
    assert str(inspect.signature(model.forward)) in error.value.message
    assert line in error.value.hint


def test_lightning_style_example():
    model = nn.Linear(8, 8)
    model.example_input_array = torch.randn(4, 8)
    assert torch.equal(load(model).args[0], model.example_input_array)


class TestCaller:
    """Inputs from Python."""

    def test_none_means_static(self):
        loaded = load(Two(), args=(torch.ones(1, 4, dtype=torch.int64), torch.ones(1, 4)))
        assert loaded.dynamic_shapes is None
        assert loaded.args[0].shape == (1, 4)

    def test_shapes_pass_through(self):
        shapes = {"ids": {0: Dim.DYNAMIC, 1: Dim("seq", max=40)}, "mask": (Dim.DYNAMIC, Dim.DYNAMIC)}
        loaded = load(Two(), args=(torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4)), dynamic_shapes=shapes)
        assert loaded.dynamic_shapes == shapes

    def test_text_names_become_dims(self):
        shapes = {"ids": {0: "batch"}, "mask": {0: "batch"}}
        loaded = load(
            Two(),
            kwargs={"ids": torch.ones(2, 4, dtype=torch.int64), "mask": torch.ones(2, 4)},
            dynamic_shapes=shapes,
        )
        assert names(loaded.dynamic_shapes) == shapes
        assert loaded.dynamic_shapes["ids"][0] is loaded.dynamic_shapes["mask"][0]

    @pytest.mark.parametrize("form", ["dict", "tuple"])
    def test_dynamic_axes_of_size_one_grow(self, form):
        batch = Dim("batch")
        shapes = {"ids": {0: batch}, "mask": {0: batch}} if form == "dict" else ({0: batch}, {0: batch})
        given_inputs = (torch.arange(4).reshape(1, 4), torch.ones(1, 4))
        loaded = load(Two(), args=given_inputs, dynamic_shapes=shapes)
        assert loaded.args[0].shape[0] == loaded.args[1].shape[0] >= 2
        assert torch.equal(loaded.args[0][-1], given_inputs[0][0])
        assert any("repeated ids, mask" in note for note in loaded.notes)
        torch.export.export(loaded.module, loaded.args, {}, dynamic_shapes=shapes)

    def test_inputs_that_do_not_fit(self):
        with pytest.raises(InputError, match=r"missing a required argument: 'mask'"):
            load(Two(), args=(torch.ones(2, 4, dtype=torch.int64),))

    def test_twice(self):
        with pytest.raises(InputError, match="given twice"):
            load(Two(), args=(torch.ones(1),), inputs=("ids:int64[b]",))

    def test_plain_values_are_baked_in(self):
        values = {"ids": torch.ones(2, 4, dtype=torch.int64), "mask": torch.ones(2, 4), "scale": 2.0}
        loaded = load(Two(), kwargs=values, dynamic_shapes={"ids": {0: "b"}, "mask": {0: "b"}, "scale": None})
        assert loaded.kwargs["scale"] == 2.0
        assert loaded.dynamic_shapes["scale"] is None


class TestFile:
    """Inputs from .npz and .pt files."""

    def npz(self, tmp_path, **arrays):
        np.savez(tmp_path / "x.npz", **arrays)
        return tmp_path / "x.npz"

    def test_npz_without_axes_is_static(self, tmp_path):
        path = self.npz(tmp_path, ids=np.ones((2, 5), np.int64), mask=np.ones((2, 5)))
        loaded = load(Two(), inputs_file=path)
        assert loaded.kwargs["mask"].dtype == torch.float32
        assert any("float64 to float32" in note for note in loaded.notes)
        assert loaded.dynamic_shapes is None
        assert any("fixed" in note for note in loaded.notes)

    def test_text_names_the_axes_of_a_file(self, tmp_path):
        path = self.npz(tmp_path, ids=np.ones((1, 5), np.int64), mask=np.ones((1, 5), np.bool_))
        loaded = load(Two(), inputs_file=path, inputs=("ids:int32[batch,seq]", "mask:bool[batch,seq]"))
        assert loaded.kwargs["ids"].dtype == torch.int32
        assert names(loaded.dynamic_shapes)["ids"] == {0: "batch", 1: "seq"}
        assert loaded.kwargs["ids"].shape[0] >= 2

    @pytest.mark.parametrize("text", ["ids:int64[batch,6]", "ids:int64[batch]"])
    def test_text_that_contradicts_the_file(self, tmp_path, text):
        path = self.npz(tmp_path, ids=np.ones((2, 5), np.int64), mask=np.ones((2, 5)))
        with pytest.raises(InputError, match=r"does not fit.*\[2, 5\]"):
            load(Two(), inputs_file=path, inputs=(text,))

    def test_text_that_names_more_than_the_file(self, tmp_path):
        path = self.npz(tmp_path, ids=np.ones((2, 5), np.int64), mask=np.ones((2, 5)))
        with pytest.raises(InputError, match="does not hold"):
            load(Two(), inputs_file=path, inputs=("scale:float32[]",))

    def test_positional_arrays(self, tmp_path):
        np.savez(tmp_path / "x.npz", np.ones((2, 5), np.int64), np.ones((2, 5), np.float32))
        assert [tuple(a.shape) for a in load(Two(), inputs_file=tmp_path / "x.npz").args] == [(2, 5), (2, 5)]

    @pytest.mark.parametrize("held", ["dict", "tuple", "tensor"])
    def test_torch_file(self, tmp_path, held):
        x = torch.randn(2, 8)
        torch.save({"dict": {"input": x}, "tuple": (x,), "tensor": x}[held], tmp_path / "x.pt")
        loaded = load(nn.Linear(8, 8), inputs_file=tmp_path / "x.pt")
        assert torch.equal([*loaded.args, *loaded.kwargs.values()][0], x)

    def test_objects_are_refused(self, tmp_path):
        path = self.npz(tmp_path, ids=np.array([{"a": 1}, None], dtype=object))
        with pytest.raises(InputError, match="Python objects"):
            load(Two(), inputs_file=path)
        path = self.npz(tmp_path, ids=np.array(["a", "b"]))
        with pytest.raises(InputError, match="no numeric dtype"):
            load(Two(), inputs_file=path)

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04abc", b"\x80\x02abc", b"hello", None])
    def test_no_input_file(self, tmp_path, content):
        path = tmp_path / "x.npz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npz"):
            load(Two(), inputs_file=path)

    def test_truncated_npz(self, tmp_path):
        path = self.npz(tmp_path, ids=np.ones((2, 5), np.int64), mask=np.ones((2, 5)))
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(InputError, match="truncated or damaged"):
            load(Two(), inputs_file=path)

    @pytest.mark.parametrize("held", [{}, [], 3, "text"])
    def test_nothing_in_the_file(self, tmp_path, held):
        torch.save(held, tmp_path / "x.pt")
        with pytest.raises(InputError, match="no inputs"):
            load(Two(), inputs_file=tmp_path / "x.pt")

    def test_surplus_inputs(self, tmp_path):
        torch.save(tuple(torch.ones(2) for _ in range(5)), tmp_path / "x.pt")
        with pytest.raises(InputError, match="too many positional"):
            load(Two(), inputs_file=tmp_path / "x.pt")


class TestSizes:
    """Example sizes can be mistaken for nothing."""

    @settings(max_examples=60, deadline=None)
    @given(st.sets(st.integers(2, 60)), st.integers(2, 12), st.integers(20, 200))
    def test_distinct_free_and_within_limits(self, taken, low, high):
        chooser = SizeChooser(taken)
        sizes = [chooser.pick(at_least=low, at_most=high) for _ in range(3)]
        assert all(2 <= size <= high for size in sizes)
        free = [n for n in range(2, high + 1) if n not in taken]
        if len(free) >= 3:
            assert len(set(sizes)) == 3
            assert not set(sizes) & taken

    def test_unbounded_sizes_are_prime(self):
        chooser = SizeChooser({2, 3, 5, 7})
        assert [chooser.pick() for _ in range(3)] == [11, 13, 17]
        assert chooser.pick(at_least=30) == 31

    def test_many_layers_and_labels_leave_small_sizes(self):
        model = Two()
        model.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(40))
        for index, layer in enumerate(model.layers):
            layer.layer_idx = index
        model.config = type("Config", (), {"label2id": {str(i): i for i in range(1000)}, "eos_token_id": [3, 5]})()
        loaded = load(model, inputs=("ids:int64[batch,seq]", "mask:bool[batch,seq]"))
        assert max(loaded.kwargs["ids"].shape) < 20

    def test_numbers_of_a_module(self):
        found = numbers_of(nn.MultiheadAttention(24, 6))
        assert {24, 6, 72, 4} <= found


class TestTraced:
    """Programs and TorchScript take inputs by name too."""

    def program(self):
        seq = Dim("seq", min=2, max=90)
        shapes = {"ids": {1: seq}, "mask": {1: seq}}
        values = (torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5))
        return torch.export.export(Two().eval(), values, dynamic_shapes=shapes)

    def test_program_with_text(self):
        loaded = load(self.program(), inputs=("ids:int64[3,seq]", "mask:float32[3,seq]"))
        assert loaded.args[0].shape == loaded.args[1].shape
        assert loaded.args[0].shape[1] not in (1, 5)
        loaded.module.module()(*loaded.args)

    def test_program_with_file(self, tmp_path):
        torch.save({"ids": torch.ones(3, 9, dtype=torch.int64), "mask": torch.ones(3, 9)}, tmp_path / "x.pt")
        loaded = load(self.program(), inputs_file=tmp_path / "x.pt")
        assert [tuple(value.shape) for value in loaded.args] == [(3, 9), (3, 9)]

    def test_program_without_such_an_input(self):
        with pytest.raises(InputError, match="no input idz"):
            load(self.program(), inputs=("idz:int64[3,seq]",))

    @pytest.fixture
    def script(self):
        values = (torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 4))
        return torch.jit.trace(Two().eval(), values)

    def test_script_with_text_in_any_order(self, script):
        loaded = load(script, inputs=("mask:float32[b,s]", "ids:int64[b,s]"))
        assert [value.dtype for value in loaded.args] == [torch.int64, torch.float32]
        assert [{a: d.__name__ for a, d in axes.items()} for axes in loaded.dynamic_shapes] == [{0: "b", 1: "s"}] * 2
        loaded.module(*loaded.args)

    def test_script_with_a_gap(self, script):
        with pytest.raises(InputError, match="gap"):
            load(script, inputs=("mask:float32[b,s]",))

    def test_script_without_such_an_input(self, script):
        with pytest.raises(InputError, match="no parameter nope"):
            load(script, inputs=("nope:float32[b,s]",))
