"""Nothing that a command reads is written over by what it writes, unless a model is optimized in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deployml import bench, lock, optimize
from deployml.cli import main
from deployml.runtime.errors import InputError

from .gate_model import plain_model, save

QUICK = {"validate": False, "html": False}


def _apart(folder: Path, name: str, data: str) -> Path:
    """A model whose weights lie in a file of their own."""
    ir.save(plain_model(layers=1), folder / name, external_data=data)
    return folder / name


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("external_data", ["auto", "always"])
def test_the_weights_of_the_source_are_neither_dropped_nor_replaced(tmp_path, external_data):
    source = _apart(tmp_path, "model.onnx", "model.onnx.data").rename(tmp_path / "orig.onnx")
    before = _bytes(tmp_path)
    with pytest.raises(InputError, match=r"model\.onnx\.data' is read here") as refused:
        optimize(source, output=tmp_path / "model.onnx", external_data=external_data, **QUICK)
    assert "-o" in refused.value.hint
    assert _bytes(tmp_path) == before


@pytest.mark.parametrize("role", ["unfused", "bisect"])
def test_a_source_that_bears_the_name_of_a_product_is_kept(tmp_path, role):
    source = tmp_path / f"a.{role}.onnx"
    save(plain_model(layers=1), source)
    before = _bytes(tmp_path)
    with pytest.raises(InputError, match=rf"a\.{role}\.onnx' is read here"):
        optimize(source, output=tmp_path / "a.onnx", **QUICK)
    assert _bytes(tmp_path) == before


def test_a_second_name_of_the_source_is_seen(tmp_path):
    save(plain_model(layers=1), tmp_path / "one.onnx")
    (tmp_path / "two.onnx").hardlink_to(tmp_path / "one.onnx")
    with pytest.raises(InputError, match="is read here"):
        optimize(tmp_path / "one.onnx", output=tmp_path / "two.onnx", **QUICK)


def test_a_model_is_optimized_in_place_with_its_weights(tmp_path):
    source = _apart(tmp_path, "model.onnx", "model.onnx.data")
    made = optimize(source, output=tmp_path / "." / "model.onnx", external_data="always", html=False)
    assert made.report.verdict == "pass" and len(made.report.fused) == 1
    assert (tmp_path / "model.onnx.data").is_file()


def test_export_keeps_its_example_inputs(encoder, tmp_path):
    examples = tmp_path / "m.bisect.npz"
    np.savez(examples, input_ids=np.ones((1, 4), np.int64), attention_mask=np.ones((1, 4), np.int64))
    options = ("--factory", f"{encoder.code}:build", "--inputs", str(examples))
    assert main(["export", str(encoder.weights), *options, "-o", str(tmp_path / "m.onnx")]) == 2
    assert examples.is_file() and not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("name", ["m.onnx", "m.unfused.onnx", "weights.bin", "second.onnx"])
def test_pages_and_locks_do_not_take_the_place_of_models(tmp_path, name):
    model = _apart(tmp_path, "m.onnx", "weights.bin")
    for other in ("m.unfused.onnx", "second.onnx"):
        shutil.copy(model, tmp_path / other)
    before = _bytes(tmp_path)
    with pytest.raises(InputError, match=r"is read here.*"):
        bench(model, contenders=[tmp_path / "second.onnx"], page=tmp_path / name)
    if name != "second.onnx":
        with pytest.raises(InputError) as refused:
            lock(model, output=tmp_path / name)
        assert "-o" in refused.value.hint
    assert _bytes(tmp_path) == before


@pytest.mark.parametrize("name", ["m.onnx", "m.lock.json", "source.onnx"])
def test_results_of_a_check_do_not_take_the_place_of_its_inputs(tmp_path, name, capfd):
    model, source = tmp_path / "m.onnx", tmp_path / "source.onnx"
    save(plain_model(layers=1), model)
    shutil.copy(model, source)
    lock(model)
    before = _bytes(tmp_path)
    assert main(["check", str(model), "--against", str(source), "--junit", str(tmp_path / name)]) == 2
    assert "--junit" in capfd.readouterr().err
    assert _bytes(tmp_path) == before


def test_an_older_lock_is_replaced(tmp_path):
    save(plain_model(layers=1), tmp_path / "m.onnx")
    lock(tmp_path / "m.onnx")
    again = lock(tmp_path / "m.onnx", output=tmp_path / "m.lock.json", weights=False)
    assert not again.weights and '"weights": {}' in (tmp_path / "m.lock.json").read_text(encoding="utf-8")
