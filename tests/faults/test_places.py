"""Where files lie: paths with spaces and letters of many scripts, and folders that are links to others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

import deployml

#: Its weights are large enough to go to a file of their own.
_MODEL = """
<ir_version: 10, opset_import: ["": 21]>
g (float[n, 32] x) => (float[n, 32] y)
{
  a = MatMul(x, w)
  [act] y = Tanh(a)
}
"""
_NAMES = ("a folder (1)", "Модель ünd 模型", "it's 100% {here} [x] #1")


def _save(path: Path) -> None:
    model = parser.parse_model(_MODEL)
    weights = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(model, path)


def _all_commands(run, folder: Path, name: str) -> None:
    """Every command on a model in this folder, its weights in a file of their own."""
    source, model = folder / f"{name}.source.onnx", folder / f"{name}.onnx"
    _save(source)
    lines: tuple[tuple[object, ...], ...] = (
        ("optimize", source, "-o", model, "--external-data", "always", "--bench-seconds", "0.1"),
        ("lock", model),
        ("check", model, "--against", source),
        ("validate", model, "--against", source),
        ("bench", model, "--seconds", "0.1", "--page", folder / f"{name}.page.html"),
        ("explain", model),
        ("doctor", "--model", model),
        ("package", model, "-o", folder / "repository", "--name", "m"),
    )
    for line in lines:
        ran = run(*line)
        assert ran.status == 0, (line, ran.err)
    assert model.with_name(f"{model.name}.data").is_file()
    assert len(deployml.session(model).get_inputs()) == 1
    report = json.loads((folder / f"{name}.report.json").read_text(encoding="utf-8"))
    assert report["model"] == f"{name}.onnx" and str(folder) not in json.dumps(report, ensure_ascii=False)


@pytest.mark.parametrize("name", _NAMES)
def test_spaces_and_letters_of_any_script(name, tmp_path, deployml_command):
    folder = tmp_path / name
    folder.mkdir()
    _all_commands(deployml_command, folder, name)


def test_a_folder_that_is_a_link(tmp_path, deployml_command):
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real, target_is_directory=True)
    _all_commands(deployml_command, link, "m")
    assert (real / "m.onnx").is_file() and link.is_symlink()
    assert deployml_command("check", real / "m.onnx").status == 0


def test_weights_that_are_a_link_out_of_the_folder_are_refused_with_the_cure(tmp_path, deployml_command):
    store, folder = tmp_path / "store", tmp_path / "models"
    store.mkdir()
    folder.mkdir()
    _save(folder / "source.onnx")
    made = ("optimize", folder / "source.onnx", "-o", folder / "m.onnx", "--external-data", "always")
    assert deployml_command(*made, "--no-bench").status == 0
    (folder / "m.onnx.data").rename(store / "blob")
    (folder / "m.onnx.data").symlink_to(store / "blob")
    ran = deployml_command("bench", folder / "m.onnx", "--seconds", "0.1")
    assert ran.status == 2 and "outside the model's folder" in ran.err and "cp -L" in ran.err
