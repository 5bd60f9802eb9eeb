"""Which CUDA the installed packages were built for and the driver runs, without importing any of them."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["ABSENT", "UNKNOWN", "clashes", "cuda_versions", "major"]

#: Said of what was built without CUDA, or is not there.
ABSENT: Final = "none"
UNKNOWN: Final = "unknown"

#: Module -> the file in it that says for which CUDA it was built, and how.
_BUILDS: Final[dict[str, tuple[str, str]]] = {
    "onnxruntime": ("capi/build_and_package_info.py", r"^cuda_version\s*=\s*['\"]([\d.]+)['\"]"),
    "torch": ("version.py", r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)['\"]"),
}
_DRIVERS: Final = ("libcuda.so.1", "nvcuda.dll")


def cuda_versions() -> dict[str, str]:
    """CUDA versions of onnxruntime's and torch's wheels, and the newest one that the driver runs.

    Returns:
        "onnxruntime", "torch" and "driver", each with a version ("12.8"), ``ABSENT`` for a CPU-only build, a missing
        package or no driver, or ``UNKNOWN`` for a build of onnxruntime with CUDA that does not say which.
    """
    found = {name: _built_for(name, *place) for name, place in _BUILDS.items()}
    if found["onnxruntime"] == ABSENT and _has_cuda_provider():
        found["onnxruntime"] = UNKNOWN
    return {**found, "driver": _driver()}


def major(version: str) -> int | None:
    """12 of "12.8"; None where there is no number."""
    head = version.partition(".")[0]
    return int(head) if head.isdigit() else None


def clashes(versions: Mapping[str, str], *, works: bool = False) -> list[tuple[str, str]]:
    """What of :func:`cuda_versions` cannot work together, each with what to do about it.

    A machine without a driver has no clash: there nothing of CUDA runs, whatever the wheels were built for. Nor has
    one on which onnxruntime's CUDA provider was seen to come up (``works``): each package then has its own libraries.
    """
    runtime, torch, driver = (major(versions.get(name, ABSENT)) for name in ("onnxruntime", "torch", "driver"))
    if driver is None or works:
        return []
    found = []
    for name, built, package in (("onnxruntime", runtime, "onnxruntime-gpu"), ("torch", torch, "torch")):
        if built is not None and built > driver:
            found.append(
                (
                    f"{name} was built for CUDA {versions[name]}, the driver runs CUDA up to {versions['driver']}",
                    f"update the NVIDIA driver, or install a build of {package} for CUDA {driver}",
                )
            )
    if runtime is not None and torch is not None and runtime != torch:
        found.append(
            (
                f"onnxruntime was built for CUDA {versions['onnxruntime']} and torch for CUDA {versions['torch']}: "
                "neither finds its libraries in the other's",
                "install builds for one CUDA (torch has an index for each: https://download.pytorch.org/whl/cu...), "
                "or give onnxruntime its own: pip install 'onnxruntime-gpu[cuda,cudnn]'",
            )
        )
    return found


def _built_for(module: str, file: str, pattern: str) -> str:
    folder = _folder(module)
    if folder is None:
        return ABSENT
    with suppress(OSError, UnicodeDecodeError):
        said = re.search(pattern, (folder / file).read_text(encoding="utf-8"), re.MULTILINE)
        return said[1] if said else ABSENT
    return ABSENT


def _folder(module: str) -> Path | None:
    """Where a package lies; asking does not import it."""
    with suppress(ImportError, ValueError):  # ValueError: a module that was put into sys.modules without a spec
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent
    return None


def _has_cuda_provider() -> bool:
    folder = _folder("onnxruntime")
    return folder is not None and any((folder / "capi").glob("*onnxruntime_providers_cuda*"))


def _driver() -> str:
    """What the driver's own library says; it needs no device, and nothing is initialised."""
    for name in _DRIVERS:
        with suppress(OSError, AttributeError):
            version = ctypes.c_int()
            if ctypes.CDLL(name).cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value > 0:
                return f"{version.value // 1000}.{version.value % 1000 // 10}"
    return ABSENT
