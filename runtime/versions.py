"""Installed package versions, read from metadata: nothing is imported to find out."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Final

from .errors import ToolchainError
from .target import parse_version

__all__ = ["ONNXRUNTIME_PACKAGES", "PACKAGES", "installed", "onnxruntime_version", "require"]

#: Distributions that bring the module ``onnxruntime``. More than one in an environment overwrite each other.
ONNXRUNTIME_PACKAGES: Final[tuple[str, ...]] = (
    "onnxruntime-gpu",
    "onnxruntime",
    "onnxruntime-rocm",
    "onnxruntime-migraphx",
)

#: What a report lists, in this order.
PACKAGES: Final[tuple[str, ...]] = (
    "deployml",
    *ONNXRUNTIME_PACKAGES,
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxsim",
    "torch",
    "transformers",
    "numpy",
)


def installed(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Map each installed package of ``packages`` to its version, plus ``python``; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in packages:
        version = _version(name)
        if version is not None:
            found[name] = version
    return found


def onnxruntime_version() -> tuple[int, ...]:
    """Version of the onnxruntime that is installed, whichever distribution brings it.

    Raises:
        ToolchainError: if there is none.
    """
    for name in ONNXRUNTIME_PACKAGES:
        version = _version(name)
        if version is not None:
            return parse_version(version)
    raise ToolchainError(
        "onnxruntime is not installed", hint="pip install onnxruntime-gpu  (or onnxruntime, where it has no wheel)"
    )


def require(package: str, minimum: str | None = None, *, why: str) -> str:
    """Return the version of ``package`` or say how to get it.

    Args:
        package: Distribution name on the package index.
        minimum: Oldest version that serves, or None.
        why: What it is needed for, as "to load a Hugging Face directory".

    Raises:
        ToolchainError: if it is missing or older than ``minimum``.
    """
    version = _version(package)
    wish = f"{package}>={minimum}" if minimum else package
    if version is None:
        raise ToolchainError(f"{package} is needed {why} and is not installed", hint=f"pip install '{wish}'")
    if minimum is not None and parse_version(version) < parse_version(minimum):
        raise ToolchainError(
            f"{package} {minimum} or newer is needed {why}; {version} is installed",
            hint=f"pip install -U '{wish}'",
        )
    return version


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
