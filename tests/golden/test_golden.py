"""The fused form of each golden model is the one that was locked: an upgrade that changes a graph is seen here.

``--update-golden`` writes the locks anew; look at the difference as at code.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deployml import custom_ops, export
from deployml.exporter.onnx_file import open_file
from deployml.exporter.standing import lock_of
from deployml.runtime.drift import differences
from deployml.runtime.lock import Lock, read_lock, write_lock

from .models import MODELS, Golden

LOCKS = Path(__file__).parents[2] / "golden_models"


def made(golden: Golden, folder: Path) -> Lock:
    """Export a golden model and describe it; weights and versions are left out, the graph is what counts."""
    path = folder / f"{golden.name}.onnx"
    module = golden.module()
    export(
        module, output=path, inputs=golden.inputs, target=golden.target, validate=False, html=False, cpu_isa="avx512"
    )
    return replace(lock_of(path, open_file(path), weights=False), versions={})


@pytest.mark.parametrize("golden", MODELS, ids=lambda g: g.name)
def test_the_fused_form_is_the_locked_one(golden, tmp_path, request):
    if golden.target == "cpu" and "cpu" not in custom_ops.available():
        pytest.skip("not run: the CPU op library is not built, which changes what attention becomes")
    now = made(golden, tmp_path)
    place = LOCKS / f"{golden.name}.lock.json"
    if request.config.getoption("--update-golden"):
        write_lock(place, now)
    found = [f.text for f in differences(read_lock(place), now) if f.verdict == "fail"]
    assert not found, f"{golden.name}: " + "\n".join(found)


def test_every_lock_is_of_a_model_and_every_model_has_one():
    assert sorted(p.name for p in LOCKS.glob("*.lock.json")) == sorted(f"{g.name}.lock.json" for g in MODELS)


@pytest.mark.parametrize("golden", MODELS, ids=lambda g: g.name)
def test_every_attention_of_a_golden_model_is_fused(golden):
    lock = read_lock(LOCKS / f"{golden.name}.lock.json")
    assert lock.sites
    assert [s.where for s in lock.sites if s.status == "declined"] == []
