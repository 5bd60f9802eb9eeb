"""A short fuzz of the loaders; ``python -m tests.faults.fuzz`` is the long one."""

from __future__ import annotations

import random

import pytest

from . import fuzz
from .fuzz import loaders, mutated, seeds


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_what_the_fuzzer_begins_with_is_loaded(tmp_path):
    """Else every mutation would be refused for one and the same reason."""
    for ending, contents in seeds().items():
        path = tmp_path / f"whole{ending}"
        path.write_bytes(contents[0])
        loaders()[ending](path)


def test_a_find_is_a_find(monkeypatch):
    def broken(path):
        raise KeyError("oops")

    monkeypatch.setattr(fuzz, "loaders", lambda: {".onnx": broken})
    found = fuzz.fuzz(random.Random(1), lambda tried: tried >= 3, [".onnx"])
    assert [said for _, _, said in found.finds] == ["KeyError: 'oops'"] * 3


def test_mutations_are_many_and_repeat():
    whole = bytes(range(200))
    made = [mutated(whole, random.Random(seed)) for seed in range(100)]
    assert len(set(made)) > 90
    assert made == [mutated(whole, random.Random(seed)) for seed in range(100)]


@pytest.mark.parametrize(("count", "seed"), [(1600, 1), pytest.param(60_000, 2, marks=pytest.mark.slow)])
def test_a_loader_loads_or_refuses_whatever_the_bytes(count, seed):
    found = fuzz.fuzz(random.Random(seed), lambda tried: tried >= count)
    assert found.tried == count
    assert [(ending, said) for ending, _, said in found.finds] == []
    for ending in (".onnx", ".pt", ".safetensors", ".npz"):
        assert found.outcomes[f"{ending} loaded"] and found.outcomes[f"{ending} refused"]
