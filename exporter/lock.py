"""``deployml.lock``: write down what a model is, so that ``check`` can say what became different."""

from __future__ import annotations

from pathlib import Path

from ..runtime.lock import Lock, write_lock
from .artifact import FileNames
from .keeping import check_output
from .onnx_file import open_file
from .standing import lock_of

__all__ = ["lock", "lock_path"]


def lock(model: str | Path, *, output: str | Path | None = None, weights: bool = True) -> Lock:
    """Write the lock of a model, X.lock.json beside X.onnx.

    It holds operator counts, attention sites and what computes them, inputs, outputs and dynamic axes, opsets, digests
    of the weights by layer, versions, and the parity and latency of the report beside the model, where that fits.

    Args:
        model: The ONNX file.
        output: Where to write instead.
        weights: Whether other weights are a difference.

    Raises:
        InputError: if the model cannot be read, or the lock cannot be written or would take the model's place.
    """
    path = Path(model).expanduser()
    if output is not None:
        check_output(output, path, (), option="-o")
    found = lock_of(path, open_file(path), weights=weights)
    write_lock(lock_path(path) if output is None else Path(output).expanduser(), found)
    return found


def lock_path(model: Path) -> Path:
    """Where the lock of a model lies."""
    return model.parent / FileNames(model.name).lock
