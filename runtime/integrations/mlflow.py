"""Logging a produced model with MLflow: the model through MLflow's ONNX flavour, its report as artifacts and metrics.

Needs ``pip install 'deployml[mlflow]'``. A model that calls operators of ours carries their function bodies, so that it
also runs, unfused, where MLflow serves it without our library; the library is logged beside it for sessions that can
register it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..errors import InputError, ToolchainError
from ..report import Report, from_json

__all__ = ["log_model", "metrics_of"]

#: What lies beside X.onnx, by the end of its name.
_BESIDE: Final = (".report.json", ".report.html", ".lock.json")


def log_model(
    model: str | Path,
    *,
    name: str = "model",
    libraries: Sequence[str | Path] = (),
    registered_model_name: str | None = None,
    **options: Any,
) -> Any:
    """Log an ONNX file to the active MLflow run (one is started where there is none).

    Logged: the model with the signature of its inputs and outputs; ``X.report.json``, ``X.report.html`` and
    ``X.lock.json`` where they lie beside it, as artifacts under ``deployml``; parity, latency ratios and counts of the
    report as metrics; target and the versions that made it as parameters.

    Args:
        model: The ONNX file.
        name: What the model is called in MLflow.
        libraries: Op libraries to log beside it.
        registered_model_name: Register it under this name.
        options: Passed on to ``mlflow.onnx.log_model``.

    Returns:
        MLflow's ``ModelInfo``.

    Raises:
        ToolchainError: if MLflow, or what its ONNX flavour needs, is not installed.
        InputError: if the model or a library cannot be read, or the report beside the model is that of another file.
    """
    mlflow, onnx = _imported()
    path = Path(model).expanduser()
    missing = next((p for p in (path, *map(Path, libraries)) if not p.is_file()), None)
    if missing is not None:
        raise InputError(f"there is no file '{missing}'", hint="check the path")
    try:
        proto = onnx.load(path)
    except MemoryError:
        raise
    except Exception as error:  # protobuf and onnx have many of their own; each says that the file is no good
        raise InputError(f"'{path.name}' is no ONNX file, or it is damaged", hint="copy the file again") from error
    report = _report_of(path)
    if mlflow.active_run() is None:
        mlflow.start_run()
    info = mlflow.onnx.log_model(
        proto,
        name=name,
        signature=_signature(proto),
        extra_files=[str(library) for library in libraries] or None,
        registered_model_name=registered_model_name,
        **options,
    )
    for beside in _BESIDE:
        place = path.with_name(path.stem + beside)
        if place.is_file():
            mlflow.log_artifact(str(place), artifact_path="deployml")
    if report is not None:
        mlflow.log_metrics(metrics_of(report))
        mlflow.log_params(_parameters(report))
    return info


def metrics_of(report: Report) -> dict[str, float]:
    """The numbers of a report as MLflow takes them."""
    found = {
        "deployml.passed": float(report.verdict == "pass"),
        "deployml.attentions": float(len(report.sites)),
        "deployml.attentions_fused": float(len(report.fused)),
        "deployml.nodes": float(sum(report.census_after.values())),
    }
    worst = None if report.parity is None else report.parity.worst
    if worst is not None and worst.needed is not None:
        found |= {"deployml.parity_needed": worst.needed, "deployml.parity_granted": worst.granted}
    for contender in () if report.latency is None else report.latency.contenders:
        found[f"deployml.ms.{contender.name}"] = contender.median_ms
    for ratio in () if report.latency is None else report.latency.ratios:
        found[f"deployml.speed_over.{ratio.of}"] = ratio.value
    return found


def _parameters(report: Report) -> dict[str, str]:
    versions = {f"deployml.with.{name}": version for name, version in sorted(report.versions.items())}
    return {"deployml.target": report.target, "deployml.source": report.source, **versions}


def _imported() -> tuple[Any, Any]:
    try:
        import mlflow
        import mlflow.onnx
        import onnx
    except ImportError as error:
        raise ToolchainError(
            f"MLflow's ONNX flavour cannot be used here: {error}", hint="pip install 'deployml[mlflow]'"
        ) from error
    return mlflow, onnx


def _report_of(path: Path) -> Report | None:
    place = path.with_name(f"{path.stem}.report.json")
    if not place.is_file():
        return None
    hint = "export the model anew, or move that file away"
    try:
        report = from_json(place.read_text(encoding="utf-8"), Report)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"'{place.name}' is no report of deployml", hint=hint) from error
    if not report.is_of(path):
        raise InputError(f"'{place.name}' is the report of another file than '{path.name}' is now", hint=hint)
    return report


def _signature(proto: Any) -> Any:
    """The inputs and outputs with their types; an axis that is no number is written -1, as MLflow has it."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema

    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [_spec(value) for value in proto.graph.input if value.name not in weights]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema([_spec(value) for value in proto.graph.output]))


def _spec(value: Any) -> Any:
    import numpy as np
    import onnx_ir as ir
    from mlflow.types.schema import TensorSpec

    tensor: Mapping[str, Any] | Any = value.type.tensor_type
    dtype = ir.DataType(tensor.elem_type).numpy()
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return TensorSpec(np.dtype(dtype), shape, value.name)
