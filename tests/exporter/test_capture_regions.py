"""Tests of opening regions that change nothing in inference."""

from __future__ import annotations

import pytest
import torch

from deployml.exporter.capture import capture, check_dynamic
from deployml.exporter.capture.inputs import examples_of
from deployml.exporter.capture.replay import Replay
from deployml.exporter.capture.surgery import source_line
from deployml.exporter.loaded import Loaded
from deployml.exporter.translate import translate

AXES = {"x": {0: "batch", 1: "sequence"}}


def _loaded(module: torch.nn.Module, batch: int = 2, length: int = 5) -> Loaded:
    x = torch.randn(batch, length, 8)
    return Loaded(module.eval(), "module", type(module).__name__, (x,), {}, AXES)


class Guarded(torch.nn.Module):
    """Attention in full precision, as models write it for use under autocast; its scale from a table."""

    def __init__(self, enabled: bool = False) -> None:
        super().__init__()
        self.enabled = enabled
        self.register_buffer("scale", torch.tensor([0.5]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=self.enabled, dtype=torch.bfloat16):
            with torch.set_grad_enabled(True):
                shifted = x.float() + torch.tensor([1.0, 2.0]).sum()
            weights = (shifted @ shifted.mT * self.scale).softmax(-1)
            return weights @ shifted


def _targets(loaded: Loaded) -> list[str]:
    return [str(node.target) for node in capture(loaded).program.graph.nodes]


def test_idle_regions_are_opened_and_keep_their_lines() -> None:
    loaded = _loaded(Guarded())
    captured = capture(loaded)
    assert not [target for target in _targets(loaded) if "wrap" in target]
    (softmax,) = [node for node in captured.program.graph.nodes if "softmax" in str(node.target)]
    assert "test_capture_regions.py:" in source_line(softmax)
    origins = [node.metadata_props for node in translate(captured, opset=21).model.graph if node.op_type == "Softmax"]
    assert any("test_capture_regions.py:" in value for value in origins[0].values())


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7)])
def test_opened_regions_compute_the_same(batch: int, length: int) -> None:
    loaded = _loaded(Guarded())
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
    other = _loaded(Guarded(), batch, length)
    (found,) = Replay(captured.program).outputs(examples_of(other))
    torch.testing.assert_close(found, Guarded()(*other.args))


def test_a_region_that_casts_is_left() -> None:
    assert [target for target in _targets(_loaded(Guarded(enabled=True))) if "wrap_with_autocast" in target]


def test_a_saved_program_keeps_its_regions() -> None:
    x = torch.randn(2, 5, 8)
    program = torch.export.export(Guarded().eval(), (x,))
    outputs = list(program.graph_signature.user_outputs)
    captured = capture(Loaded(program, "program", "saved", (x,), {}, None))
    assert list(program.graph_signature.user_outputs) == outputs
    torch.testing.assert_close(captured.program.module()(x), Guarded()(x))
    torch.testing.assert_close(program.module()(x), Guarded()(x))
