"""``deployml.session``: an onnxruntime session with everything a model needs registered."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from .. import custom_ops
from ..runtime.session import open_session
from ..runtime.target import TargetName
from .fusing import libraries_of
from .onnx_file import open_file

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["session"]


def session(
    path: str | Path,
    target: TargetName = "cpu",
    *,
    threads: int | None = None,
    allow_cpu_fallback: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a model on the provider of ``target``, with the op libraries it needs.

    Args:
        path: The ONNX file.
        target: "cpu", "cuda", "rocm" or "portable".
        threads: Threads within an operator; None leaves the choice to onnxruntime.
        allow_cpu_fallback: Accept a session on the CPU where the target's provider does not come up.

    Raises:
        DeploymlError: if the file cannot be read or does not load on that provider; says why.
    """
    place = Path(path).expanduser()
    model = open_file(place)
    libraries = libraries_of(model, target)
    # A schema for each of some 400 names would take 40 ms and 17 MiB of every session.
    names = {node.op_type for node in model.graph.all_nodes() if node.domain == custom_ops.DOMAIN}
    with custom_ops.registering(Path(libraries[0]), names) if libraries else nullcontext():
        return open_session(place, target, libraries=libraries, threads=threads, allow_cpu_fallback=allow_cpu_fallback)
