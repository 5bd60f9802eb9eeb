"""deployml: PyTorch transformers to ONNX, with every attention fused, proven and explained.

``deployml.export`` and its siblings are imported when they are first used: ``import deployml`` loads neither torch nor
onnxruntime.
"""

from __future__ import annotations

import importlib
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter.artifact import Artifact
    from .exporter.bench import bench
    from .exporter.check import check
    from .exporter.explain import explain
    from .exporter.export import export
    from .exporter.lock import lock
    from .exporter.optimize import optimize
    from .exporter.package import package
    from .exporter.session import session
    from .exporter.validate import validate
    from .runtime.errors import (
        DeploymlBug,
        DeploymlError,
        InputError,
        ToolchainError,
        UnsupportedError,
        VerdictError,
    )
    from .runtime.report import Report, Site

__version__ = "0.1.0"

__all__ = [
    "Artifact",
    "DeploymlBug",
    "DeploymlError",
    "InputError",
    "Report",
    "Site",
    "ToolchainError",
    "UnsupportedError",
    "VerdictError",
    "bench",
    "check",
    "explain",
    "export",
    "lock",
    "optimize",
    "package",
    "session",
    "validate",
]

_HOMES = {
    "Artifact": ".exporter.artifact",
    "Report": ".runtime.report",
    "Site": ".runtime.report",
    **dict.fromkeys(
        ("bench", "check", "explain", "export", "lock", "optimize", "package", "session", "validate"), ".exporter."
    ),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'deployml' has no attribute {name!r}")
    home = _HOMES.get(name, ".runtime.errors")
    before = random.getstate()
    module = importlib.import_module(f"{home}{name}" if home.endswith(".") else home, __package__)
    random.setstate(before)  # rich draws numbers when it is imported: a caller's seeded run would change
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
