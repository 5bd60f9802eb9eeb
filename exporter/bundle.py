"""What is kept of a fault of ours: the graph it happened on, without its weights, and the bug itself."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx_ir as ir

from ..runtime.errors import DeploymlBug, DeploymlError

__all__ = ["reproducible", "without_weights"]

#: Initializers up to this many elements are kept: shapes, axes and scales decide what the passes do.
_SMALL = 1024


def without_weights(model: ir.Model) -> ir.Model:
    """A copy of a model whose large weights are inputs of the same type and shape, and whose others lie in it."""
    light = model.clone()
    for name, value in list(light.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= _SMALL or value.is_graph_input():
            continue
        light.graph.initializers.pop(name)
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
        light.graph.inputs.append(value)
    return ir.external_data.load_to_model(light)


@contextmanager
def reproducible(before: ir.Model) -> Iterator[None]:
    """Turn whatever goes wrong inside, save what a user can mend, into a bug with a folder that reproduces it.

    Args:
        before: The graph as it was before the block changes anything; kept without its weights.

    Raises:
        DeploymlBug: with the folder; the first error is its cause.
    """
    try:
        yield
    except (DeploymlError, MemoryError):
        raise
    except DeploymlBug as bug:
        if bug.bundle is None:
            bug.bundle = _write(before)
        raise
    except Exception as error:
        raise DeploymlBug(f"{type(error).__name__}: {error}", bundle=_write(before)) from error


def _write(before: ir.Model) -> str | None:
    """Save the graph; None where even that fails, which must not hide the fault itself."""
    with suppress(Exception):
        folder = Path(tempfile.mkdtemp(prefix="deployml-bug-"))
        ir.save(without_weights(before), folder / "before.onnx")
        return str(folder)
    return None
