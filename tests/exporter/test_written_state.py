"""A model that writes into its own state is told so, and an export leaves no trace in it nor in random numbers."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import deployml
from deployml.exporter.capture.written_state import state_notes, written_state
from deployml.runtime.errors import UnsupportedError

X = torch.ones(2, 8)


class InPlace(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


class Assigned(InPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return self.linear(x) * self.calls


class Cache(InPlace):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0:1] = self.calls[0:1] * 0.9 + x.mean()
        return self.linear(x) + self.calls


@pytest.mark.parametrize("kind", [InPlace, Assigned, Cache])
def test_a_program_that_writes_into_a_buffer_says_so(kind: type[InPlace]) -> None:
    program = torch.export.export(kind().eval(), (X,))
    assert written_state(program) == written_state(program.run_decompositions()) == ["calls"]
    (note,) = state_notes(program)
    assert "'calls'" in note and "as an output" in note


def test_buffers_that_are_only_read_are_no_news() -> None:
    assert state_notes(torch.export.export(torch.nn.BatchNorm1d(8).eval(), (X,))) == ()


def test_an_export_puts_buffers_back_and_leaves_random_numbers(tmp_path: Path) -> None:
    module = InPlace().eval()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    done = deployml.export(module, (X,), output=tmp_path / "m.onnx", html=False, validate=False)
    assert module.calls == 0
    assert any("writes into 'calls'" in note for note in done.report.warnings)
    assert random.getstate() == before[0] and np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_writing_into_a_tensor_that_is_no_buffer_is_refused_in_words(tmp_path: Path) -> None:
    module = InPlace().eval()
    del module.calls
    module.calls = torch.zeros(1)
    with pytest.raises(UnsupportedError, match=r"writes into 'calls'.*no buffer") as raised:
        deployml.export(module, (X,), output=tmp_path / "m.onnx", html=False)
    assert "register_buffer('calls'" in str(raised.value.hint)


def test_the_first_use_of_a_function_draws_no_random_number() -> None:
    code = "import random, deployml; s = random.getstate(); deployml.export; assert s == random.getstate()"
    subprocess.run([sys.executable, "-c", code], check=True)
