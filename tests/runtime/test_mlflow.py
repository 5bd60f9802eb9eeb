"""MLflow against a file store: the model comes back and computes the same, its report is beside it."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from deployml.runtime.errors import InputError, ToolchainError
from deployml.runtime.integrations import mlflow as integration
from deployml.runtime.report import Contender, LatencyReport, Ratio, Report

MISSING = [name for name in ("mlflow", "pandas") if importlib.util.find_spec(name) is None]
needs_mlflow = pytest.mark.skipif(bool(MISSING), reason=f"not run: {', '.join(MISSING)} is not installed")


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A file store in a folder, and no run left open."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield mlflow
    mlflow.end_run()
    mlflow.set_tracking_uri(before)


@needs_mlflow
def test_a_model_is_logged_with_its_report_and_comes_back(store, exported, tmp_path):
    import mlflow.onnx

    from deployml import custom_ops, session

    library = custom_ops.library_path("cpu")
    info = integration.log_model(exported, name="encoder", libraries=[] if library is None else [library])
    run = store.get_run(info.run_id)
    assert run.data.metrics["deployml.attentions_fused"] == 2
    assert run.data.metrics["deployml.parity_needed"] < run.data.metrics["deployml.parity_granted"]
    assert run.data.params["deployml.target"] == "cpu" and "deployml.with.onnx" in run.data.params
    kept = {a.path for a in store.MlflowClient().list_artifacts(info.run_id, "deployml")}
    assert kept == {"deployml/encoder.report.json", "deployml/encoder.report.html"}
    back = mlflow.onnx.load_model(info.model_uri)
    import onnx

    onnx.save(back, tmp_path / "back.onnx")
    ids = np.arange(14, dtype=np.int64).reshape(2, 7)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    outputs = [session(path).run(None, feeds)[0] for path in (exported, tmp_path / "back.onnx")]
    np.testing.assert_array_equal(*outputs)
    assert [(i.name, i.shape) for i in info.signature.inputs] == [
        ("input_ids", (-1, -1)),
        ("attention_mask", (-1, -1)),
    ]


@needs_mlflow
def test_what_cannot_be_logged_is_refused(store, tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx"):
        integration.log_model(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(InputError, match="no ONNX file"):
        integration.log_model(tmp_path / "bad.onnx")
    assert store.active_run() is None


def test_the_report_of_another_file_is_not_logged_as_this_ones(exported, tmp_path):
    for file in exported.parent.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    model = tmp_path / exported.name
    assert integration._report_of(model).is_of(exported)
    model.write_bytes(exported.with_name("encoder.unfused.onnx").read_bytes())
    with pytest.raises(InputError, match=r"encoder\.report\.json' is the report of another file"):
        integration._report_of(model)


def test_without_mlflow_the_message_names_what_to_install(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ToolchainError) as error:
        integration.log_model(tmp_path / "m.onnx")
    assert error.value.hint == "pip install 'deployml[mlflow]'"


def test_the_numbers_of_a_report():
    ratio = Ratio(of="unfused", over="fused", value=1.5, low=1.4, high=1.6, pairs=30)
    contender = Contender(name="fused", median_ms=2.0, p90_ms=3.0, p99_ms=4.0, runs=30, provider="CPU")
    latency = LatencyReport(verdict="pass", shapes={}, threads=1, contenders=(contender,), ratios=(ratio,))
    made = Report(command="export", verdict="fail", model="m", source="s", target="cpu", versions={}, latency=latency)
    found = integration.metrics_of(made)
    assert found["deployml.passed"] == 0 and found["deployml.speed_over.unfused"] == 1.5
    assert found["deployml.ms.fused"] == 2.0 and "deployml.parity_needed" not in found
