"""Models that keep a table from one call to the next, traced after they were run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from deployml.exporter.capture import capture, check_dynamic
from deployml.exporter.capture.inputs import examples_of
from deployml.exporter.capture.replay import Replay
from deployml.exporter.loaded import Loaded
from deployml.exporter.tracing import axis_limits

HEADS, WIDTH = 2, 8


class Scored(nn.Module):
    """(batch, length, 8) through attention whose scores a table of (heads, length, length) is added to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        query, key, value = self.qkv(x).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-1, -2) + self.bias(length)
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, WIDTH)

    def bias(self, length: int) -> Tensor:
        raise NotImplementedError

    def distances(self, length: int) -> Tensor:
        at = torch.arange(length)
        return (at[None, :] - at[:, None]).abs() * torch.tensor([-0.5, -0.25]).view(HEADS, 1, 1)


class Grown(Scored):
    """Makes a new table where the old one is too small."""

    def bias(self, length: int) -> Tensor:
        if self.table is None or self.table.shape[-1] < length:
            self.table = self.distances(length)
        return self.table[..., :length, :length]


class Registered(Scored):
    """Keeps its table as a buffer, and takes its end."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", None, persistent=False)

    def bias(self, length: int) -> Tensor:
        if self.kept is not None and self.kept.shape[-1] >= length:
            return self.kept[..., -length:, -length:]
        self.register_buffer("kept", self.distances(length), persistent=False)
        return self.kept


class Cut(Scored):
    """Has one table, made when the model was, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.made = self.distances(16)

    def bias(self, length: int) -> Tensor:
        assert length <= self.made.shape[-1], "too long"
        return self.made[..., :length, :length]


class Otherwise(Scored):
    """Computes something else for long inputs, so that no single graph holds for both."""

    def bias(self, length: int) -> Tensor:
        return self.distances(length) if length <= 16 else -self.distances(length)


class Both(Registered):
    """Keeps a table, and takes no more than 16 places."""

    def bias(self, length: int) -> Tensor:
        assert length <= 16, "too long"
        return super().bias(length)


def _loaded(module: nn.Module) -> Loaded:
    return Loaded(
        module.eval(),
        "module",
        type(module).__name__,
        (torch.randn(2, 5, WIDTH),),
        {},
        {"x": {0: "batch", 1: "length"}},
    )


@pytest.mark.parametrize("run_at", [5, 12])
@pytest.mark.parametrize("kind", [Grown, Registered])
def test_a_table_left_by_an_earlier_run_is_no_limit(kind: type[Scored], run_at: int) -> None:
    module = kind().eval()
    with torch.no_grad():
        module(torch.randn(1, run_at, WIDTH))
    loaded = _loaded(module)
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
    assert axis_limits(captured)["length"] == (1, None)
    assert not [note for note in captured.notes if "up to" in note]
    for length in (1, 5, 40):
        examples = examples_of(loaded).resized({"length": length})
        (found,) = Replay(captured.program).outputs(examples)
        with torch.no_grad():
            wanted = kind().eval()(examples.tensors[0].value)  # a fresh one, which has no table
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [Cut, Otherwise])
def test_a_limit_of_the_model_itself_stays_and_is_said(kind: type[Scored]) -> None:
    captured = capture(_loaded(kind()))
    assert axis_limits(captured)["length"] == (1, 16)
    assert any("'length' up to 16" in note for note in captured.notes)


def test_only_the_limit_of_the_table_goes_where_the_model_has_another() -> None:
    module = Both().eval()
    with torch.no_grad():
        module(torch.randn(1, 5, WIDTH))
    loaded = _loaded(module)
    captured = capture(loaded)
    assert check_dynamic(loaded, captured) == ()
    assert axis_limits(captured)["length"] == (1, 16)
