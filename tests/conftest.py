"""Fixtures that more than one kind of test needs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Tiny tensors gain nothing from torch's threads and lose much on a busy machine; before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts what it runs in the background with Ctrl-C ignored, and every process below inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ENCODER = '''\
"""A small encoder with attention by hand, and one whose attention no operator can hold."""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, width=64, heads=4, odd=False):
        super().__init__()
        self.heads, self.odd = heads, odd
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x, mask):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        weights = torch.softmax(scores.masked_fill(mask[:, None, None, :] == 0, -1e9), -1)
        if self.odd:
            weights = torch.sqrt(weights)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    def __init__(self, odd=False):
        super().__init__()
        self.embedding = nn.Embedding(50, 64)
        self.layers = nn.ModuleList([Attention(), Attention(odd=odd)])
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))

    def forward(self, input_ids, attention_mask):
        x = self.embedding(input_ids)
        for layer, norm in zip(self.layers, self.norms):
            x = norm(x + layer(x, attention_mask))
        return x


def _filled(model):
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return model.eval()


def build():
    return _filled(Encoder())


def build_odd():
    return _filled(Encoder(odd=True))
'''


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --update-golden: write what is pinned anew instead of comparing with it."""
    parser.addoption("--update-golden", action="store_true", help="write golden files anew; review them like code")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Let a skip without a reason in the words of the summary ("not run: ...") fail."""
    report = yield
    said = report.longrepr
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(said, tuple) and "not run: " not in said[2]:
        report.outcome, report.longrepr = "failed", f"a skip must say 'not run: why'; this one says '{said[2]}'"
    return report


#: Options that say what the encoder takes.
INPUTS = ("--input", "input_ids:int64[batch,seq]", "--input", "attention_mask:int64[batch,seq]")


@dataclass(frozen=True)
class Ran:
    """What a command line left: exit status, stdout, stderr."""

    status: int
    out: str
    err: str


@pytest.fixture
def deployml_command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process."""
    from deployml.cli import main

    def run(*arguments: object) -> Ran:
        capfd.readouterr()
        status = main([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return Ran(status, out, err)

    return run


@dataclass(frozen=True)
class Encoder:
    """The encoder on disk: its code, its weights, and the options to export it with."""

    code: Path
    weights: Path

    @property
    def options(self) -> tuple[str, ...]:
        """Source, factory and inputs."""
        return str(self.weights), "--factory", f"{self.code}:build", *INPUTS

    @property
    def odd_options(self) -> tuple[str, ...]:
        """The same with one attention that no operator holds."""
        return str(self.weights), "--factory", f"{self.code}:build_odd", *INPUTS


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """A state_dict beside the code that builds its module."""
    import torch

    folder = tmp_path_factory.mktemp("encoder")
    code = folder / "small_encoder.py"
    code.write_text(ENCODER, encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "small_encoder"}
    exec(compile(ENCODER, str(code), "exec"), namespace)
    model = namespace["build"]()  # type: ignore[operator]
    torch.save(model.state_dict(), folder / "encoder.pt")
    return Encoder(code, folder / "encoder.pt")


@pytest.fixture(scope="session")
def exported(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder exported once, with parity and without timing."""
    import deployml

    path = tmp_path_factory.mktemp("exported") / "encoder.onnx"
    deployml.export(
        encoder.weights,
        factory=f"{encoder.code}:build",
        inputs=[INPUTS[1], INPUTS[3]],
        output=path,
        require_fused="all",
    )
    return path


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The repository's folder."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter under test."""
    return sys.executable
