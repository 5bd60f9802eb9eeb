"""``deployml doctor``: versions, providers that really load, op libraries, pairs that are known not to work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from .. import custom_ops
from ..runtime.errors import DeploymlError
from ..runtime.report import Verdict, to_json
from ..runtime.target import PROVIDERS, parse_version
from ..runtime.versions import ONNXRUNTIME_PACKAGES, installed

__all__ = ["Diagnosis", "Finding", "doctor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that stands in the way, and what to do about it."""

    what: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What ``deployml doctor`` found.

    Attributes:
        verdict: "fail" when a problem was found.
        versions: Package to version.
        targets: Target name to "ready" or why it is not.
        libraries: Backend to "built" or "not built".
        problems: Known-bad pairs and the like.
    """

    verdict: Verdict
    versions: Mapping[str, str]
    targets: Mapping[str, str]
    libraries: Mapping[str, str]
    problems: tuple[Finding, ...] = ()

    def to_json(self, *, indent: int | None = 2) -> str:
        """The diagnosis as JSON text, keys in field order."""
        return to_json(self, indent=indent)


def doctor() -> Diagnosis:
    """Look at the environment; nothing is changed and no model is needed."""
    versions = installed()
    problems = tuple(finding for check in _CHECKS if (finding := check(versions)) is not None)
    return Diagnosis(
        verdict="fail" if problems else "pass",
        versions=versions,
        targets={name: _target_state(name) for name in PROVIDERS},
        libraries={
            backend: "built" if backend in custom_ops.available() else "not built" for backend in ("cpu", "cuda", "hip")
        },
        problems=problems,
    )


def _target_state(name: Any) -> str:
    """Open a model of one node on the target's provider: a provider that is listed may still not load."""
    import onnx_ir as ir

    from ..runtime.session import open_session

    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Add", [x, x])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 20}, name="probe")
    try:
        open_session(ir.serde.serialize_model(ir.Model(graph, ir_version=10)).SerializeToString(), name)
    except DeploymlError as error:
        return error.message
    return "ready"


def _two_onnxruntimes(versions: Mapping[str, str]) -> Finding | None:
    found = [name for name in ONNXRUNTIME_PACKAGES if name in versions]
    if len(found) < 2:
        return None
    return Finding(
        what=f"{' and '.join(found)} are both installed and overwrite each other's files",
        hint=f"pip uninstall -y {' '.join(found)} && pip install {found[0]}",
    )


def _no_onnxruntime(versions: Mapping[str, str]) -> Finding | None:
    if any(name in versions for name in ONNXRUNTIME_PACKAGES):
        return None
    return Finding(what="onnxruntime is not installed", hint="pip install onnxruntime-gpu (or onnxruntime)")


def _old_onnxscript(versions: Mapping[str, str]) -> Finding | None:
    return _older(
        versions, "onnxscript", "0.6.2", "its version converter rejects models with local functions, as torch makes"
    )


def _old_torch(versions: Mapping[str, str]) -> Finding | None:
    return _older(versions, "torch", "2.10", "loading untrusted weights is not safe in it (CVE-2026-24747)")


def _old_onnxruntime(versions: Mapping[str, str]) -> Finding | None:
    name = next((n for n in ONNXRUNTIME_PACKAGES if n in versions), "onnxruntime")
    return _older(versions, name, "1.22", "the produced models use operators that it lacks")


def _older(versions: Mapping[str, str], package: str, least: str, why: str) -> Finding | None:
    have = versions.get(package)
    if have is None or parse_version(have) >= parse_version(least):
        return None
    return Finding(what=f"{package} {have}: {why}", hint=f"pip install -U '{package}>={least}'")


_CHECKS: Final[tuple[Callable[[Mapping[str, str]], Finding | None], ...]] = (
    _no_onnxruntime,
    _two_onnxruntimes,
    _old_onnxruntime,
    _old_onnxscript,
    _old_torch,
)
