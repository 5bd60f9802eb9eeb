"""Operators that torch's own ONNX translation lacks or gets wrong, and what the graph says about its origin."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from deployml.exporter.capture import capture
from deployml.exporter.loaded import Loaded
from deployml.exporter.source_map import SourceMap, relative_source
from deployml.exporter.translate import Translated, translate
from deployml.passes.canonical import expand_all
from deployml.passes.canonical_experts import is_grouped, read
from deployml.passes.cleanup.fold import fold
from deployml.runtime.errors import UnsupportedError

AXES = {"x": {0: "batch", 1: "sequence"}}


def _translated(module: torch.nn.Module, *args: torch.Tensor, axes: Any = AXES) -> Translated:
    return translate(capture(Loaded(module.eval(), "module", type(module).__name__, args, {}, axes)), opset=20)


def _run(translated: Translated, *args: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(translated.model).SerializeToString())
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, args, strict=True)})


class Centred(torch.nn.Module):
    """Keeps a tensor under the name that torch gives to a result."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.randn(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * x.mean(1, keepdim=True)


def test_a_kept_tensor_may_have_the_name_of_a_result() -> None:
    module = Centred()
    translated = _translated(module, torch.randn(2, 5, 8))
    x = torch.randn(3, 4, 8)
    np.testing.assert_allclose(_run(translated, x)[0], module(x), rtol=1e-5, atol=1e-6)


class Chunked(torch.nn.Module):
    """Overlapping windows over a transposed tensor, read by its memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned = (x * 2).transpose(0, 1)
        return turned.as_strided((x.shape[0], x.shape[1] - 1, 2, 4), (x.shape[1] * 4, 4, 4, 1))


@pytest.mark.parametrize("sizes", [(2, 5), (3, 9)])
def test_as_strided_follows_memory_and_not_values(sizes: tuple[int, int]) -> None:
    translated = _translated(Chunked(), torch.randn(2, 5, 4))
    x = torch.randn(*sizes, 4)
    np.testing.assert_array_equal(_run(translated, x)[0], Chunked()(x).numpy())


class Part(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1)[:, 1:].as_strided((2, 2), (1, 1))


def test_as_strided_on_a_part_of_a_tensor_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="part of a larger tensor") as caught:
        _translated(Part(), torch.randn(3, 5, 4), axes=None)
    assert caught.value.where is not None and "test_translate_ops.py:" in caught.value.where


class RoundedBias(torch.nn.Module):
    """bfloat16 arithmetic inside a float32 model, as in ALiBi."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((4,), 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        slopes = torch.tensor([0.5, 0.3, 0.7], dtype=torch.bfloat16)
        rounded = x.sum(-1).to(torch.bfloat16)
        return x * self.scale + (rounded[..., None] * slopes + rounded[..., None]).sum(-1, keepdim=True).float()


def test_leftover_bfloat16_is_computed_in_float32_with_its_roundings() -> None:
    translated = _translated(RoundedBias(), torch.randn(3, 5, 4))
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = RoundedBias()(x).numpy()
        total = x.sum(-1, keepdim=True)
        unrounded = x * 1.5 + (total * torch.tensor([0.5, 0.3, 0.7]) + total).sum(-1, keepdim=True)
    np.testing.assert_allclose(_run(translated, x)[0], expected, rtol=0, atol=1e-6)
    assert np.abs(unrounded.numpy() - expected).max() > 1e-3  # the roundings are there to be seen


class Chosen(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.to(torch.bfloat16)).float()


def test_a_model_that_is_bfloat16_by_its_weights_stays_so() -> None:
    translated = _translated(Chosen(), torch.randn(3, 5, 4))
    products = [node for node in translated.model.graph if node.op_type in ("MatMul", "Gemm")]
    assert products and all(node.outputs[0].dtype == ir.DataType.BFLOAT16 for node in products)


class Splits(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second, third = x.split(4, dim=-1)
        head, tail = x.split([3, 6], dim=-1)
        return first, second, third, head, tail


def test_splits_need_no_sequences() -> None:
    translated = _translated(Splits(), torch.randn(3, 5, 9))
    assert not [node for node in translated.model.graph if "Sequence" in node.op_type]
    x = torch.randn(2, 7, 9)
    for found, expected in zip(_run(translated, x), Splits()(x), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())


class Chunks(torch.nn.Module):
    """Halves of a dynamic axis: the size of a piece is computed."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first, second = torch.cat([x, 2 * x], dim=1).chunk(2, dim=1)
        last = torch.cat([x, x, x.flip(0)], dim=1).split(x.shape[1], dim=1)[2]
        return first + 1, second, last


def test_pieces_of_a_computed_size_need_no_sequences() -> None:
    translated = _translated(Chunks(), torch.randn(3, 5, 4))
    assert not [node for node in translated.model.graph if "Sequence" in node.op_type]
    fold(translated.model)
    for sizes in ((2, 7), (4, 1)):
        x = torch.randn(*sizes, 4)
        for found, expected in zip(_run(translated, x), Chunks()(x), strict=True):
            np.testing.assert_array_equal(found, expected.numpy())


class Squeezed(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x.squeeze(0) + 1, x.squeeze(-1) + 1, x[:, :1].squeeze(1), x.sum().squeeze(0))


def test_squeezing_an_axis_of_another_size_changes_nothing() -> None:
    translated = _translated(Squeezed(), torch.randn(3, 5, 4))
    x = torch.randn(2, 7, 4)
    for found, expected in zip(_run(translated, x), Squeezed()(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5)


class Repeats(torch.nn.Module):
    """Repeats rows and columns as often as a length says, as lengths of sequences are for every query."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        times = x.shape[1]
        lengths = x[:, 0, 0].repeat_interleave(3).repeat_interleave(times)
        return (
            lengths,
            x.repeat_interleave(times),
            x.repeat_interleave(times, dim=-1),
            x.repeat_interleave(times, dim=1),
        )


@pytest.mark.parametrize("sizes", [(1, 5), (2, 7)])
def test_elements_are_repeated_in_their_order_as_often_as_a_size_says(sizes: tuple[int, int]) -> None:
    translated = _translated(Repeats(), torch.randn(3, 6, 4))
    x = torch.randn(*sizes, 4)
    for found, expected in zip(_run(translated, x), Repeats()(x), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())


class Overwritten(torch.nn.Module):
    """Writes into parts of an axis, of fixed and of free size: first, middle, last, every other and whole ones."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        made = [x + number for number in range(9)]
        made[0][:, :1] = x[:, :1] * 2
        made[1][:, 1:-1] = x[:, 1:-1] * 2
        made[2][:, -2:] *= 2
        made[3][..., 1::2] = x[..., :2]
        made[4][:, : x.shape[1]] = x
        made[5][:, 1:, 1:] += x[:, 1:, 1:]
        made[6][:, 2] = x[:, 0]
        made[7][:, -1] = 5.0
        made[8][..., 0] = x[..., 3]
        return tuple(made)


def test_a_slice_is_overwritten_without_scattering() -> None:
    translated = _translated(Overwritten(), torch.randn(3, 5, 4))
    assert [node.op_type for node in translated.model.graph].count("ScatterElements") == 1
    assert not [node for node in translated.model.graph if node.op_type == "ScatterND"]
    for sizes in ((2, 7), (4, 3)):
        x = torch.randn(*sizes, 4)
        for found, expected in zip(_run(translated, x), Overwritten()(x), strict=True):
            np.testing.assert_array_equal(found, expected.numpy())


class Convolved(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain = torch.nn.Conv3d(4, 8, 3, padding=1, stride=(1, 2, 1), groups=2, bias=False)
        self.biased = torch.nn.Conv3d(8, 4, (1, 2, 1), dilation=(1, 2, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        wide = self.plain(x)
        return self.biased(wide), self.plain(x[0])


def test_a_video_is_convolved_with_and_without_a_bias() -> None:
    module = Convolved().eval()
    translated = _translated(module, torch.randn(3, 4, 5, 7, 6), axes={"x": {0: "batch", 2: "frames"}})
    x = torch.randn(2, 4, 4, 7, 6)
    with torch.no_grad():
        wanted = module(x)
    for found, expected in zip(_run(translated, x), wanted, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


class Filled(torch.nn.Module):
    """Writes one number wherever a mask holds: on every axis, on the first, on the last ones, through a view."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        every, rows, later, turned = x + 1, x + 2, x @ x.mT, x + 3
        every[x > 0] = -1e9
        rows[x.sum((1, 2)) > 0] = 5.0
        later[:, torch.ones_like(later[0]).triu(1).bool()] = float("-inf")
        turned.mT[x.mT > 0.5] = x.new_full((1,), 7.0)[0]
        return every, rows, later, turned, every.masked_fill(x > 1, math.sqrt(x.shape[1]))


@pytest.mark.parametrize("sizes", [(1, 5), (2, 7)])
def test_a_number_is_written_under_a_mask_without_a_list_of_positions(sizes: tuple[int, int]) -> None:
    translated = _translated(Filled(), torch.randn(3, 6, 4))
    x = torch.randn(*sizes, 4)
    for found, expected in zip(_run(translated, x), Filled()(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert not {"NonZero", "ScatterND"} & {node.op_type for node in translated.model.graph.all_nodes()}


class Added(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.index_put((x > 0,), torch.tensor(2.0), accumulate=True)


def test_a_number_that_is_added_under_a_mask_is_not_written_over() -> None:
    x = torch.randn(2, 7, 4)
    np.testing.assert_allclose(_run(_translated(Added(), torch.randn(3, 6, 4)), x)[0], Added()(x).numpy(), rtol=1e-5)


class Quantile(torch.nn.Module):
    """A cut at a quantile of the normal distribution, as sparse activations have it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cut = torch.distributions.normal.Normal(0, 1).icdf(torch.tensor(0.95))
        return torch.relu(x - cut), torch.erfinv(x)


def test_the_inverse_error_function_holds_from_end_to_end() -> None:
    translated = _translated(Quantile(), torch.rand(3, 5, 4))
    ends = [-1.0, -1 + 6e-8, -0.999, -0.95, -1e-4, 0.0, 1e-7, 0.3, 0.9, 0.999999, 1.0, 1.5]
    x = torch.tensor(ends).reshape(1, 3, 4)
    for found, expected in zip(_run(translated, x), Quantile()(x), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-7)


class Distances(torch.nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, torch.cat((x, x * 0.5 - 1), 1), p=self.p)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, math.inf])
def test_distances_of_all_pairs_hold_also_where_they_are_zero(p: float) -> None:
    translated = _translated(Distances(p), torch.randn(2, 5, 4), axes={"x": {0: "batch"}})
    x = torch.randn(3, 5, 4)
    (found,) = _run(translated, x)
    np.testing.assert_allclose(found, Distances(p)(x).numpy(), rtol=1e-5, atol=1e-6)


class Searched(torch.nn.Module):
    """The document of each token by the ends of documents, and the bucket of each number."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: torch.Tensor, ends: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        places = torch.arange(x.shape[1])
        edges = torch.tensor([-1.0, 0.0, 0.5, 2.0])
        return (
            torch.searchsorted(ends, places, right=self.right),
            torch.searchsorted(rows, x, right=self.right, out_int32=True),
            torch.bucketize(x, edges, right=self.right),
        )


@pytest.mark.parametrize("right", [False, True])
def test_places_in_a_sorted_sequence_are_counted(right: bool) -> None:
    axes = {"x": {1: "sequence"}, "ends": None, "rows": {1: "row"}}
    rows = torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    model, ends = Searched(right), torch.tensor([2, 2, 5])
    translated = _translated(model, torch.zeros(2, 6, dtype=torch.float32), ends, rows, axes=axes)
    x = torch.tensor([[-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0]] * 2)  # edges themselves, between, before and behind
    for found, expected in zip(_run(translated, x, ends, rows), model(x, ends, rows), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())
        assert found.dtype == expected.numpy().dtype


class Grouped(torch.nn.Module):
    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 6, 4) if turned else torch.randn(3, 4, 6))
        self.turned = turned

    def forward(self, x: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
        weight = self.weight.transpose(-2, -1) if self.turned else self.weight
        return torch.ops.transformers.grouped_mm_fallback(x, weight, offs)


@pytest.mark.parametrize("dtype", (torch.int32, torch.int64), ids=str)
@pytest.mark.parametrize("turned", (False, True), ids=("as-stored", "transposed"))
def test_grouped_matmul_gives_each_expert_its_rows(turned: bool, dtype: torch.dtype) -> None:
    pytest.importorskip("transformers.integrations.moe", reason="not run: transformers is not installed")
    module, x = Grouped(turned), torch.randn(5, 4)
    translated = _translated(module, x, torch.tensor([1, 2, 5], dtype=dtype), axes={"x": {0: "rows"}})
    (node,) = [n for n in translated.model.graph if is_grouped(n)]
    assert read(node).transposed == turned
    assert read(node).weight.is_initializer()  # as the module holds it
    expand_all(translated.model)
    for ends in ((1, 1, 4), (0, 3, 5), (2, 4, 5), (0, 0, 0)):
        offs = torch.tensor(ends, dtype=dtype)
        with torch.no_grad():
            expected = module(x, offs).numpy()
        np.testing.assert_allclose(_run(translated, x, offs)[0], expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def library() -> Iterator[torch.library.Library]:
    library = torch.library.Library("deployml_test", "DEF")
    library.define("opaque_one(Tensor x) -> Tensor")
    library.define("opaque_two(Tensor x) -> Tensor")
    for name in ("opaque_one", "opaque_two"):
        library.impl(name, lambda x: x * 2, "CompositeExplicitAutograd")
        torch.library.register_fake(f"deployml_test::{name}", torch.empty_like, lib=library)
    yield library
    library._destroy()


class Opaque(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.deployml_test.opaque_one(x) + torch.ops.deployml_test.opaque_two(x)


def test_every_operator_without_a_translation_is_listed(library: torch.library.Library) -> None:
    with pytest.raises(UnsupportedError) as caught:
        _translated(Opaque(), torch.randn(3, 5, 4))
    assert "2 operators" in caught.value.message
    assert "opaque_one" in caught.value.message and "opaque_two" in caught.value.message
    assert "test_translate_ops.py:" in caught.value.message


@torch.library.custom_op("deployml_test_python::twice_plus", mutates_args=())
def twice_plus(x: torch.Tensor, shift: float) -> torch.Tensor:
    return x * 2 + shift


@twice_plus.register_fake
def _(x: torch.Tensor, shift: float) -> torch.Tensor:
    return torch.empty_like(x)


class Custom(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return twice_plus(x, 0.25) * 3


def test_a_custom_operator_written_in_python_is_taken_apart() -> None:
    translated = _translated(Custom(), torch.randn(3, 5, 4))
    x = torch.randn(2, 7, 4)
    np.testing.assert_allclose(_run(translated, x)[0], ((x * 2 + 0.25) * 3).numpy(), rtol=1e-6)


class Inner(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Inner(), Inner()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_every_value_knows_its_module_and_line() -> None:
    translated = _translated(Outer(), torch.randn(3, 5, 4))
    tanh = [node.outputs[0].name for node in translated.model.graph if node.op_type == "Tanh"]
    origins = [translated.source_map.lookup(name or "") for name in tanh]
    assert [origin.module for origin in origins if origin] == ["blocks.0", "blocks.1"]
    assert all(origin is not None and origin.kind == "Inner" for origin in origins)
    assert all(
        origin is not None and origin.source.split(":")[0].endswith("test_translate_ops.py") for origin in origins
    )
    assert SourceMap.of(translated.model) == translated.source_map
    assert translated.source_map.lookup("x") is None


def test_source_paths_depend_on_the_package_and_not_on_the_folder(tmp_path: Path) -> None:
    package = tmp_path / "anywhere" / "nets" / "blocks"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").touch()
    assert relative_source(str(package / "attention.py")) == "nets/blocks/attention.py"
    assert relative_source("/a/lib/python3.11/site-packages/torch/nn/x.py") == "torch/nn/x.py"
    assert relative_source(str(tmp_path / "alone.py")) == "alone.py"


def test_a_bare_name_in_a_folder_that_is_a_package_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    assert relative_source("model.py") == "model.py"


_SCRIPT = """
import hashlib, onnx_ir as ir, torch
from net import Net
from deployml.exporter.capture import capture
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import translate
torch.manual_seed(0)
loaded = Loaded(Net().eval(), "module", "net", (torch.randn(2, 3, 8),), {}, {"x": {0: "batch"}})
proto = ir.to_proto(translate(capture(loaded), opset=20).model)
print(hashlib.sha256(proto.SerializeToString()).hexdigest())
"""
_NET = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]
"""


def test_the_graph_is_the_same_bytes_in_any_folder_and_under_any_hash_seed(tmp_path: Path) -> None:
    running = []
    for seed in ("1", "2"):
        folder = tmp_path / f"folder{seed}"
        folder.mkdir()
        (folder / "net.py").write_text(_NET)
        (folder / "run.py").write_text(_SCRIPT)
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"}
        running.append(
            subprocess.Popen([sys.executable, "run.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        )
    hashes = [process.communicate()[0].strip() for process in running]
    assert len(hashes[0]) == 64
    assert hashes[0] == hashes[1]
