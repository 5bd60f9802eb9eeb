"""Models that ``capture`` refuses, each with the line and what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from deployml.exporter.capture import capture
from deployml.exporter.capture.inputs import examples_of
from deployml.exporter.capture.trace import trace
from deployml.exporter.loaded import Loaded
from deployml.runtime.errors import UnsupportedError

AXES = {"x": {0: "batch", 1: "sequence"}}


def _load(module: torch.nn.Module, *args: Any, axes: Any = AXES) -> Loaded:
    return Loaded(module.eval(), "module", type(module).__name__, args, {}, axes)


class Looping(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for step in range(x.shape[1]):
            parts.append(x[:, step] * step)
        return torch.stack(parts, 1)


class Positions(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table


@pytest.mark.parametrize(("module", "code"), [(Looping(), "for step in range"), (Positions(), "x + self.table")])
def test_a_lost_axis_is_an_error_with_its_line(module: torch.nn.Module, code: str) -> None:
    with pytest.raises(UnsupportedError, match="axis 1 \\('sequence'\\) of input 'x' is fixed to 5") as caught:
        capture(_load(module, torch.randn(3, 5, 8)))
    assert code in caught.value.message
    assert caught.value.where is not None and "test_capture_refused.py:" in caught.value.where


class LoopingOverAny(torch.nn.Module):
    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.stack([inputs[0][:, step] * step for step in range(inputs[0].shape[1])], 1)


def test_a_lost_axis_of_an_argument_without_a_name_has_its_line() -> None:
    axes = {"inputs": ({0: "batch", 1: "sequence"},)}
    with pytest.raises(UnsupportedError, match="of input 'inputs\\.0' is fixed to 5") as caught:
        capture(_load(LoopingOverAny(), torch.randn(3, 5, 8), axes=axes))
    assert "for step in range" in caught.value.message


class Converting(torch.nn.Module):
    """Brings a part to the device, or another type, in the middle of its forward."""

    def __init__(self, wider: bool) -> None:
        super().__init__()
        self.part, self.wider = torch.nn.Linear(4, 4), wider

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        part = self.part.to(x.device).float()
        return part.double()(x.double()) if self.wider else part(x)


def test_a_conversion_that_converts_nothing_is_traced_past() -> None:
    before = torch.nn.Module._apply
    loaded = Loaded(Converting(wider=False).eval(), "module", "m", (torch.randn(3, 5, 4),), {}, AXES)
    program = trace(loaded.module, examples_of(loaded))
    assert [n for n in program.graph.nodes if n.target is torch.ops.aten.linear.default]
    assert torch.nn.Module._apply is before


def test_a_conversion_that_converts_is_refused_with_its_line() -> None:
    loaded = Loaded(Converting(wider=True).eval(), "module", "m", (torch.randn(3, 5, 4),), {}, AXES)
    with pytest.raises(UnsupportedError, match=r"part\.double"):
        capture(loaded)


class Drawing(torch.nn.Module):
    """Noise of some scale on the input, and a dropout that may not be told that training is over."""

    def __init__(self, scale: float, forgotten: bool = False) -> None:
        super().__init__()
        self.scale, self.forgotten = scale, forgotten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.dropout(x, 0.5, training=self.forgotten or self.training)
        return x + self.scale * torch.randn_like(x)


@pytest.mark.parametrize(
    ("module", "code", "hint"),
    [
        (Drawing(0.5), "torch.randn_like", "as an input"),
        (Drawing(0.0, forgotten=True), "functional.dropout", "training=self.training"),
    ],
)
def test_a_result_that_is_drawn_at_random_is_refused_with_its_line(
    module: torch.nn.Module, code: str, hint: str
) -> None:
    with pytest.raises(UnsupportedError, match="draws random numbers") as caught:
        capture(_load(module, torch.randn(3, 5, 4)))
    assert code in str(caught.value) and hint in str(caught.value)
    assert "test_capture_refused.py" in str(caught.value)


def test_draws_that_change_nothing_are_no_reason_to_refuse() -> None:
    state = torch.random.get_rng_state()
    assert capture(_load(Drawing(0.0), torch.randn(3, 5, 4, generator=torch.Generator()))).output_names
    assert torch.equal(torch.random.get_rng_state(), state)


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class Number(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = int(x[0, 0, 0].item())
        return x[:, :count]


@pytest.mark.parametrize(
    ("module", "reason", "code"),
    [(Branch(), "values of a tensor", "if x.sum()"), (Number(), "Python number out of a tensor", ".item()")],
)
def test_data_dependent_code_is_refused_in_one_sentence(
    module: torch.nn.Module, reason: str, code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnsupportedError, match=reason) as caught:
        capture(_load(module, torch.randn(3, 5, 8)))
    assert code in caught.value.message
    assert caught.value.where is not None and "test_capture_refused.py:" in caught.value.where
    assert len(str(caught.value).splitlines()) == 2
    assert capfd.readouterr() == ("", "")
