"""Where the compiled operator libraries are, and how a session gets them.

Importing this module loads nothing: a library is looked up when asked for, and opened by onnxruntime.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ..runtime.errors import ToolchainError

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

__all__ = ["DOMAIN", "Backend", "available", "built_for", "library_for", "library_path", "register", "registering"]

#: Domain of every operator of this project.
DOMAIN: Final = "deployml"

Backend = Literal["cpu", "cuda", "hip"]

_FILES: Final[dict[Backend, str]] = {
    "cpu": "libdeployml_ops_cpu.so",
    "cuda": "libdeployml_ops_cuda.so",
    "hip": "libdeployml_ops_hip.so",
}

#: Target name to the backends whose library a session for it registers: the first that was built. onnxruntime takes
#: a domain from one library alone, so a GPU library holds the CPU kernels as well.
_BACKENDS: Final[dict[str, tuple[Backend, ...]]] = {
    "cpu": ("cpu",),
    "cuda": ("cuda", "cpu"),
    "rocm": ("hip", "cpu"),
    "portable": (),
}


def library_path(backend: Backend = "cpu") -> Path | None:
    """Path of the compiled library of a backend, or None where it was not built."""
    from . import __path__ as folders  # two in an editable install: the checkout, and where the build put it

    paths = (Path(folder).resolve() / "lib" / _FILES[backend] for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def library_for(target: str) -> Path | None:
    """The library a session for a target registers: that of the GPU where it was built, else that of the CPU."""
    return next((path for backend in _BACKENDS[target] if (path := library_path(backend)) is not None), None)


def built_for(target: str) -> bool:
    """Whether the library with kernels for a target's own provider was built; that of the CPU counts as its own."""
    return target == "cpu" or any(library_path(backend) is not None for backend in _BACKENDS[target][:1])


def available() -> tuple[Backend, ...]:
    """The backends whose libraries are there, in the order cpu, cuda, hip. Says nothing about devices."""
    return tuple(backend for backend in _FILES if library_path(backend) is not None)


def register(options: SessionOptions, target: str = "cpu", *, only: Collection[str] | None = None) -> tuple[Path, ...]:
    """Register the library of a target with a session's options.

    Args:
        options: Options of the session to be made; changed in place.
        target: "cpu", "cuda", "rocm" or "portable" (which needs none).
        only: Names of the operators the model calls, None for all there are: onnxruntime takes some 45 ms a
            session to make their schemas.

    Returns:
        The library that was registered, that of the GPU where it was built, which serves nodes on the CPU too; else
        that of the CPU. Nothing where none was built: models made by deployml then run the function bodies they
        carry.

    Raises:
        ToolchainError: if a library is there and onnxruntime cannot load it.
    """
    path = library_for(target)
    if path is None:
        return ()
    try:
        with registering(path, only):
            options.register_custom_ops_library(str(path))
    except Exception as error:
        raise ToolchainError(
            f"onnxruntime cannot load {path.name}: {error}",
            hint="build it for this machine with 'python -m deployml.custom_ops.build'",
        ) from error
    return (path,)


@contextmanager
def registering(path: Path, only: Collection[str] | None) -> Iterator[None]:
    """Within it, this thread registers these operators of a library alone; None or nothing stands for all.

    Args:
        path: One of the project's libraries.
        only: Names of operators, such as "FlashAttention_packed_mask".
    """
    if not only:
        yield
        return
    limit = ctypes.CDLL(str(path)).deployml_register_only
    limit(",".join(sorted(only)).encode())
    try:
        yield
    finally:
        limit(None)
