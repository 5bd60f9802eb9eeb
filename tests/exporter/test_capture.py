"""Names, axes and kinds of source of ``capture``."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attend

from deployml.exporter.capture import capture, check_dynamic
from deployml.exporter.capture.inputs import examples_of
from deployml.exporter.capture.replay import Replay
from deployml.exporter.loaded import Loaded
from deployml.runtime.errors import InputError, UnsupportedError

AXES = {"x": {0: "batch", 1: "sequence"}}


def _load(module: torch.nn.Module, *args: Any, axes: Any = AXES, **kwargs: Any) -> Loaded:
    return Loaded(module.eval(), "module", type(module).__name__, args, kwargs, axes)


class Attention(torch.nn.Module):
    """Packed query, key and value over scaled_dot_product_attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if keep is None else keep[:, None, None, :]
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return out.transpose(1, 2).reshape(batch, length, 8)


class Cache:
    """Stands for any library's key-value cache."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def get_seq_length(self) -> int:
        return int(self.tensor.shape[1])


class Structured(torch.nn.Module):
    def forward(self, x: torch.Tensor, options: dict[str, torch.Tensor], flag: bool = True) -> dict[str, Any]:
        total = x + options["shift"]
        return {
            "states": (total, x * 2 if flag else x),
            "nothing": None,
            "past_key_values": Cache(total),
            "x": x,
            "kind": "text",
        }


def test_names_follow_the_signature_and_the_returned_structure() -> None:
    x, shift = torch.randn(3, 5, 8), torch.randn(8)
    captured = capture(_load(Structured(), x, {"shift": shift}, False, axes={"x": AXES["x"]}))
    assert captured.input_names == ("x", "options.shift")
    assert captured.output_names == ("states.0", "states.1", "x_output")
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "sequence"}}
    assert any("past_key_values" in note and "cache" in note for note in captured.notes)
    assert any("'kind' is a str" in note for note in captured.notes)


def test_keyword_inputs_take_the_order_of_the_signature() -> None:
    keep = torch.ones(3, 5, dtype=torch.bool)
    captured = capture(_load(Attention(), keep=keep, x=torch.randn(3, 5, 8), axes={**AXES, "keep": AXES["x"]}))
    assert captured.input_names == ("x", "keep")
    assert captured.attention_calls == 1


@pytest.mark.parametrize("shape", [(1, 5, 8), (5, 5, 8), (3, 1, 8), (8, 2, 8)])
def test_sizes_that_collide_keep_the_axes_apart(shape: tuple[int, ...]) -> None:
    captured = capture(_load(Attention(), torch.randn(shape)))
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "sequence"}}
    assert len(set(captured.axis_names)) == 2
    assert captured.notes == ()


@pytest.mark.parametrize(
    "spec",
    [
        {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=64)}},
        ({0: "batch", 1: "sequence"},),
        {"x": ("batch", "sequence", None)},
    ],
)
def test_axes_may_be_declared_as_torch_takes_them(spec: Any) -> None:
    captured = capture(_load(Attention(), torch.randn(3, 5, 8), axes=spec))
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "sequence"}}


def test_unnamed_axes_are_named_after_their_input() -> None:
    hint = torch.export.Dim.DYNAMIC
    captured = capture(_load(Attention(), torch.randn(3, 5, 8), axes={"x": {0: hint, 1: hint}}))
    assert captured.dynamic_axes == {"x": {0: "x_0", 1: "x_1"}}


def test_no_declared_axes_means_fixed() -> None:
    assert capture(_load(Attention(), torch.randn(3, 5, 8), axes=None)).dynamic_axes == {}


class Transposed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.transpose(0, 1)


def test_axes_the_model_needs_equal_get_one_name_and_a_note() -> None:
    captured = capture(_load(Transposed(), torch.randn(5, 5, 8)))
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "batch"}}
    assert any("to be equal" in note for note in captured.notes)


class Casting(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, int(x.shape[1]) * 8) * float(x.shape[1])


def test_sizes_turned_into_python_numbers_stay_dynamic() -> None:
    loaded = _load(Casting(), torch.randn(3, 5, 8))
    captured = capture(loaded)
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "sequence"}}
    assert check_dynamic(loaded, captured) == ()


def test_inputs_the_model_refuses_are_an_input_error() -> None:
    with pytest.raises(InputError, match="does not run on the example inputs") as caught:
        capture(_load(Attention(), torch.randn(3, 5, 9)))
    assert "x float32[3, 5, 9]" in caught.value.hint


def test_inputs_that_do_not_fit_the_signature_are_an_input_error() -> None:
    with pytest.raises(InputError, match="forward\\(x, keep\\)"):
        capture(_load(Attention(), y=torch.randn(3, 5, 8)))


def test_one_axis_name_with_two_sizes_is_an_input_error() -> None:
    keep = torch.ones(3, 6, dtype=torch.bool)
    with pytest.raises(InputError, match="'sequence' is 5 in input 'x' and 6 in input 'keep'"):
        capture(_load(Attention(), torch.randn(3, 5, 8), keep, axes={**AXES, "keep": AXES["x"]}))


class CausalBySize(torch.nn.Module):
    """Causal attention whose flag is a condition on a size, by place or by name."""

    def __init__(self, by_place: bool) -> None:
        super().__init__()
        self.by_place = by_place

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attention = torch.nn.functional.scaled_dot_product_attention
        if self.by_place:
            return attention(x, x, x, None, 0.0, x.shape[1] > 1)
        return attention(x, x, x, is_causal=x.shape[1] > 1)


@pytest.mark.parametrize("by_place", [True, False])
def test_a_causal_flag_may_be_a_condition_on_a_size(by_place: bool) -> None:
    loaded = _load(CausalBySize(by_place), torch.randn(3, 5, 8))
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
    x = torch.randn(2, 7, 8)
    (found,) = Replay(captured.program).outputs(examples_of(_load(CausalBySize(by_place), x)))
    torch.testing.assert_close(found, torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True))


class CausalBySizeImported(torch.nn.Module):
    """Calls attention under a name of this file."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return attend(x, x, x, is_causal=x.shape[1] > 1)


def test_a_causal_flag_may_be_a_condition_where_the_function_was_imported() -> None:
    captured = capture(_load(CausalBySizeImported(), torch.randn(3, 5, 8)))
    x = torch.randn(2, 7, 8)
    (found,) = Replay(captured.program).outputs(examples_of(_load(CausalBySizeImported(), x)))
    torch.testing.assert_close(found, attend(x, x, x, is_causal=True))
    assert attend is torch.nn.functional.scaled_dot_product_attention


def test_a_condition_on_a_size_where_a_bool_is_wanted_says_what_to_write() -> None:
    attention = torch.nn.functional.scaled_dot_product_attention

    class Kept(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return attention(x, x, x, is_causal=x.shape[1] > 1)

    with pytest.raises(UnsupportedError, match="takes a Python bool") as caught:
        capture(_load(Kept(), torch.randn(3, 5, 8)))
    assert "bool(...)" in (caught.value.hint or "")


class Mapped(torch.nn.Module):
    """Attention of one head, mapped over heads and batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def one(rows: torch.Tensor) -> torch.Tensor:
            return (rows @ rows.mT).softmax(-1) @ rows

        return torch.vmap(torch.vmap(one))(x.unflatten(2, (2, 3)).transpose(1, 2)).transpose(1, 2).flatten(2)


def test_what_vmap_maps_follows_every_axis() -> None:
    loaded = _load(Mapped(), torch.randn(2, 5, 6))
    assert check_dynamic(loaded, capture(loaded)) == ()


class ShortBranch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[1] <= 40 else x * 3


def test_an_upper_limit_that_nobody_declared_is_said() -> None:
    captured = capture(_load(ShortBranch(), torch.randn(3, 5, 8)))
    assert [note for note in captured.notes if "axis 'sequence' up to 40" in note]


def test_an_upper_limit_that_was_declared_is_not_repeated() -> None:
    axes = {"x": {0: "batch", 1: torch.export.Dim("sequence", max=40)}}
    assert capture(_load(ShortBranch(), torch.randn(3, 5, 8), axes=axes)).notes == ()


class Always(torch.nn.Module):
    """The same without an optional argument."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length = x.shape[0], x.shape[1]
        query, key, value = self.qkv(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        out = torch.nn.functional.scaled_dot_product_attention(query, key, value)
        return out.transpose(1, 2).reshape(batch, length, 8)


@pytest.mark.parametrize("compile_", [torch.jit.script, lambda m: torch.jit.trace(m, (torch.randn(3, 5, 8),))])
def test_torchscript_is_converted_with_attention_whole(compile_: Any) -> None:
    module = compile_(Always().eval())
    loaded = Loaded(module, "torchscript", "m", (torch.randn(3, 5, 8),), {}, AXES)
    captured = capture(loaded)
    assert captured.input_names == ("x",)
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "sequence"}}
    assert captured.attention_calls == 1


def test_an_optional_argument_left_out_of_torchscript_is_named() -> None:
    loaded = Loaded(torch.jit.script(Attention().eval()), "torchscript", "m", (torch.randn(3, 5, 8),))
    with pytest.raises(UnsupportedError, match="optional arguments that were left out \\(keep\\)"):
        capture(loaded)


def test_a_saved_program_is_taken_as_it_is_and_left_unchanged() -> None:
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    program = torch.export.export(
        Attention().eval(), (torch.randn(3, 5, 8),), dynamic_shapes={"x": {0: batch, 1: sequence}}
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    program = torch.export.load(buffer)
    before = str(program.graph)
    captured = capture(Loaded(program, "program", "m", dynamic_shapes=AXES))
    assert captured.input_names == ("x",)
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "sequence"}}
    assert captured.attention_calls == 1
    assert str(program.graph) == before


def test_a_cache_among_the_outputs_is_dropped_in_a_fresh_process() -> None:
    pytest.importorskip("transformers", reason="not run: transformers is not installed")
    code = """
    import torch
    from transformers.models.gpt2 import GPT2Config, GPT2LMHeadModel
    from deployml.exporter.capture import capture
    from deployml.exporter.loaded import Loaded
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    ids = torch.ones(2, 3, dtype=torch.int64)
    captured = capture(Loaded(GPT2LMHeadModel(config).eval(), "module", "gpt2", (), {"input_ids": ids}))
    print(captured.output_names, captured.notes)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("('logits',)")
    assert "DynamicCache" in done.stdout


class Gathering(torch.nn.Module):
    """Passes on whatever it is called with, as wrappers around a model do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: torch.Tensor, *rest: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        return self.attention(x, *rest) + more["shift"] if "shift" in more else self.attention(x, *rest)


@pytest.mark.parametrize(
    ("args", "kwargs", "axes"),
    [
        (("x", "keep"), (), ({0: "batch", 1: "sequence"}, ({0: "batch", 1: "sequence"},))),
        (("x", "keep"), (), {"x": {0: "batch", 1: "sequence"}, "rest": ({0: "batch", 1: "sequence"},)}),
        (("x", "keep"), (), ({0: "batch", 1: "sequence"}, {0: "batch", 1: "sequence"})),
        (("x",), ("shift",), {"x": {0: "batch", 1: "sequence"}, "more": {"shift": {0: "batch", 1: "sequence"}}}),
        (("x",), ("shift",), {"x": {0: "batch", 1: "sequence"}, "shift": {0: "batch", 1: "sequence"}}),
    ],
)
def test_arguments_without_a_name_of_their_own_have_dynamic_axes(args: Any, kwargs: Any, axes: Any) -> None:
    given = {"x": torch.rand(2, 5, 8), "keep": torch.ones(2, 5, dtype=torch.bool), "shift": torch.rand(2, 5, 8)}
    module = Gathering()
    loaded = _load(module, *(given[name] for name in args), axes=axes, **{name: given[name] for name in kwargs})
    captured = capture(loaded)
    check_dynamic(loaded, captured)
    assert captured.input_names == tuple({"keep": "rest.0"}.get(name, name) for name in (*args, *kwargs))
    assert all(dict(captured.dynamic_axes[name]) == {0: "batch", 1: "sequence"} for name in captured.input_names)
    assert "forward" not in module.__dict__


class KeepsItsWeights(torch.nn.Module):
    """Reads a mask's type around autograd, and keeps what it computed for a plot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.weights: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        later = torch.ones(1, x.size(1), x.size(1)).triu(1).type(torch.uint8) == 0
        keep = (x[..., 0] > 0).unsqueeze(1)
        keep = keep & later.type_as(keep.data)
        self.weights = (self.linear(x).data @ x.mT).masked_fill(keep == 0, -1e9).softmax(-1)
        return self.weights @ x


def test_data_of_a_tensor_is_the_tensor() -> None:
    module, x = KeepsItsWeights().eval(), torch.randn(2, 5, 8)
    program = capture(_load(module, x)).program
    assert not any(name.startswith("lifted") for name in program.constants)
    other = torch.randn(3, 7, 8)
    (traced,) = program.module(check_guards=False)(other)
    torch.testing.assert_close(traced, module(other))
    assert "data" not in torch.Tensor.__dict__


class Modulated(torch.nn.Module):
    """A shift of each sequence, of one token or of as many as there are (the modulation of diffusion models)."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Linear(4, 16)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        shift, gain = self.shift(time).view(x.shape[0], -1, 2, 8).unbind(2)
        return x * (1 + gain) + shift


@pytest.mark.parametrize("batch", [1, 3])
def test_the_batch_of_one_input_divided_by_that_of_another_is_one(batch: int) -> None:
    module, axes = Modulated(), {"x": {0: "batch", 1: "sequence"}, "time": {0: "batch"}}
    captured = capture(_load(module, torch.randn(batch, 5, 8), torch.randn(batch, 4), axes=axes))
    assert dict(captured.dynamic_axes["x"]) == {0: "batch", 1: "sequence"}
    for sizes in ((1, 1), (1, 7), (4, 3)):
        x, time = torch.randn(*sizes, 8), torch.randn(sizes[0], 4)
        (found,) = captured.program.module(check_guards=False)(x, time)
        torch.testing.assert_close(found, module(x, time))
