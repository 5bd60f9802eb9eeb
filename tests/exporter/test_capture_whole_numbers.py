"""Sizes that a model turns into whole numbers stay sizes."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim

import deployml
from deployml.exporter.capture.check import check_dynamic
from deployml.exporter.capture.program import capture
from deployml.exporter.capture.whole_numbers import whole_numbers
from deployml.exporter.loaded import Loaded

SIDE = 4


def windows_of(x: torch.Tensor) -> torch.Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // SIDE, SIDE, w // SIDE, SIDE, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, SIDE * SIDE, c)


def image_of(windows: torch.Tensor, batch: int, h: int, w: int) -> torch.Tensor:
    x = windows.view(batch, h // SIDE, w // SIDE, SIDE, SIDE, -1)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(batch, h, w, -1)


def by_int(windows: torch.Tensor, h: int, w: int) -> torch.Tensor:
    return image_of(windows, int(windows.shape[0] / (h * w / SIDE / SIDE)), h, w)


def by_half(windows: torch.Tensor, h: int, w: int) -> torch.Tensor:
    return image_of(windows, int(windows.shape[0] * SIDE**2 / h / w + 0.5), h, w)


class Windowed(torch.nn.Module):
    """Two heads within windows of an image; the batch is computed back from the number of windows."""

    def __init__(self, join: Callable[[torch.Tensor, int, int], torch.Tensor]) -> None:
        super().__init__()
        self.qkv, self.join = torch.nn.Linear(8, 24), join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        windows = windows_of(x)
        q, k, v = self.qkv(windows).view(*windows.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = ((q @ k.transpose(-2, -1)) / 2).softmax(-1) @ v
        return self.join(y.transpose(1, 2).reshape(*windows.shape), x.shape[1], x.shape[2])


class Padded(torch.nn.Module):
    """Pads the rows to whole blocks, which NumPy counts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = int(np.ceil(x.shape[1] / SIDE)) * SIDE
        padded = torch.nn.functional.pad(x, (0, 0, 0, rows - x.shape[1]))
        return padded.view(x.shape[0], rows // SIDE, SIDE, -1).amax(2)


def _loaded(module: torch.nn.Module, x: torch.Tensor, axes: dict[int, Dim]) -> Loaded:
    return Loaded(module.eval(), "module", "m", (x,), {}, {"x": axes})


@pytest.mark.parametrize("join", [by_int, by_half])
def test_a_batch_computed_back_from_windows_stays_dynamic(
    join: Callable[[torch.Tensor, int, int], torch.Tensor],
) -> None:
    loaded = _loaded(Windowed(join), torch.randn(2, 8, 12, 8), {0: Dim("batch")})
    captured = capture(loaded)
    assert captured.dynamic_axes == {"x": {0: "batch"}}
    assert check_dynamic(loaded, captured) == ()


def test_a_quotient_without_rest_is_the_size_itself() -> None:
    program = capture(_loaded(Windowed(by_int), torch.randn(2, 8, 12, 8), {0: Dim("batch")})).program
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    (output,) = next(node for node in program.graph.nodes if node.op == "output").args[0]
    assert output.meta["val"].shape[0].node.expr == values["x"].shape[0].node.expr


def test_blocks_that_numpy_counts_follow_the_axis() -> None:
    loaded = _loaded(Padded(), torch.randn(2, 10, 8), {0: Dim("batch"), 1: Dim("rows")})
    captured = capture(loaded)
    assert captured.dynamic_axes == {"x": {0: "batch", 1: "rows"}}
    assert check_dynamic(loaded, captured) == ()


def test_attention_in_windows_is_fused_for_every_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shapes = ({0: Dim("batch"), 1: SIDE * Dim("rows", min=1, max=8)},)
    result = deployml.export(
        Windowed(by_int).eval(),
        (torch.randn(2, 8, 12, 8),),
        output=tmp_path / "m.onnx",
        dynamic_shapes=shapes,
        html=False,
    )
    assert [site.status for site in result.report.sites] == ["fused"]
    assert result.report.verdict == "pass"


class Counted(torch.nn.Module):
    """Takes ``len`` of a tensor for its batch, behind arguments that torch's other way of tracing does not take."""

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        x, y = inputs
        assert len(inputs) == 2
        return (x + y).reshape(len(x) * 2, -1).reshape(len(y), -1)


def test_len_of_a_tensor_is_its_first_size() -> None:
    x = torch.randn(3, 4, 8)
    loaded = Loaded(Counted().eval(), "module", "m", (x, x), {}, {"inputs": ({0: Dim("batch")}, {0: Dim("batch")})})
    captured = capture(loaded)
    assert captured.dynamic_axes == {"inputs.0": {0: "batch"}, "inputs.1": {0: "batch"}}
    assert check_dynamic(loaded, captured) == ()


def test_the_code_of_the_model_gets_its_int_back() -> None:
    names = globals()
    floor = torch.SymFloat.__floor__
    with pytest.raises(RuntimeError), whole_numbers(Windowed(by_int)):
        assert names["int"] is not builtins.int
        assert isinstance(3, int) and not isinstance(3.0, int) and issubclass(bool, int)
        assert names["len"] is not builtins.len and len(torch.zeros(3, 2)) == 3 and len("four") == 4
        assert int("7") == 7 and int(2.5) == 2 and int("11", 2) == 3
        raise RuntimeError
    assert "int" not in names and "len" not in names
    assert torch.SymFloat.__floor__ is floor
