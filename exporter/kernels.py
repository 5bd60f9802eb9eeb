"""``deployml kernels``: the project's own op libraries on this machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from .. import custom_ops
from ..custom_ops import Backend
from ..runtime.errors import ToolchainError
from ..runtime.progress import Progress
from ..runtime.report import to_json

__all__ = ["KernelTest", "Kernels", "KernelsTest", "build_kernels", "kernels", "ops_path", "test_kernels"]


_PROVIDERS: Final[Mapping[Backend, str]] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "hip": "ROCMExecutionProvider",
}
_TARGETS: Final[Mapping[Backend, str]] = {"cpu": "cpu", "cuda": "cuda", "hip": "rocm"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The op libraries.

    Attributes:
        domain: Domain of the project's operators.
        libraries: Backend to the library's path, or None where it is not built.
    """

    domain: str
    libraries: Mapping[str, str | None]

    def to_json(self, *, indent: int | None = 2) -> str:
        """The list as JSON text."""
        return to_json(self, indent=indent)


def kernels() -> Kernels:
    """Look which libraries are built; none is loaded."""
    paths = {backend: custom_ops.library_path(backend) for backend in _PROVIDERS}
    return Kernels(
        domain=custom_ops.DOMAIN,
        libraries={backend: None if path is None else str(path) for backend, path in paths.items()},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTest:
    """What the case matrix gave on one backend.

    Attributes:
        verdict: "pass", "fail" or "not-run".
        cases: Cases that were run.
        operators: Operator, by the start of its names, to how many of them are its.
        failed: Names of those outside their bound.
        worst: The largest error as a share of its bound.
        reason: Why it was not run.
    """

    verdict: Literal["pass", "fail", "not-run"]
    cases: int = 0
    operators: Mapping[str, int] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    worst: float = 0.0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelsTest:
    """The case matrix of every operator against its float64 reference.

    Attributes:
        verdict: "fail" when a backend failed, "pass" when one passed and none failed, else "not-run".
        backends: Findings by backend.
    """

    verdict: Literal["pass", "fail", "not-run"]
    backends: Mapping[str, KernelTest]

    def to_json(self, *, indent: int | None = 2) -> str:
        """The findings as JSON text."""
        return to_json(self, indent=indent)


def test_kernels(backend: Backend | None = None, *, progress: bool = False) -> KernelsTest:
    """Run the case matrix on this machine.

    Args:
        backend: The one to run, None for all.
        progress: Show a bar on stderr.
    """
    found = {}
    for name in _PROVIDERS if backend is None else (backend,):
        reason = _missing(name)
        found[name] = _run_cases(name, progress) if reason is None else KernelTest(verdict="not-run", reason=reason)
    verdicts = {test.verdict for test in found.values()}
    verdict: Literal["pass", "fail", "not-run"] = "not-run"
    if "fail" in verdicts or "pass" in verdicts:
        verdict = "fail" if "fail" in verdicts else "pass"
    return KernelsTest(verdict=verdict, backends=found)


test_kernels.__test__ = False  # type: ignore[attr-defined]  # a name pytest would collect


def _missing(backend: Backend) -> str | None:
    """Why a backend cannot run here, None when it can."""
    import onnxruntime

    if custom_ops.library_path(backend) is None:
        return f"its library is not built (deployml kernels build --backend {backend})"
    if _PROVIDERS[backend] not in onnxruntime.get_available_providers():
        return f"onnxruntime has no {_PROVIDERS[backend]} here: compiled, not run"
    return None


#: Runs one case: its operator's name, and a function of the session's options to the errors and what is granted.
_Run = Callable[[Any], tuple[bool, Iterable[tuple[float, float]]]]


@dataclass(frozen=True, slots=True)
class _Trial:
    """A case of some operator's matrix: the operator, the case's name, the name of the node and how to run it."""

    operator: str
    name: str
    op_type: str
    run: _Run


def _run_cases(backend: Backend, progress: bool) -> KernelTest:
    import onnxruntime

    failed, worst = [], 0.0
    count: dict[str, int] = {}
    trials = _trials(backend)
    with Progress.of(progress) as bars, bars.stage(f"kernels: {backend}") as stage:
        stage.total(len(trials))
        for trial in trials:
            stage.advance(text=trial.name)
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            custom_ops.register(options, _TARGETS[backend], only=[trial.op_type])
            passed, errors = trial.run(options)
            count[trial.operator] = count.get(trial.operator, 0) + 1
            shares = [error / granted if granted else math.inf for error, granted in errors if error > 0.0]
            worst = max(worst, *shares, 0.0)
            if not passed:
                failed.append(f"{trial.operator}: {trial.name}")
    verdict: Literal["pass", "fail"] = "fail" if failed else "pass"
    return KernelTest(verdict=verdict, cases=sum(count.values()), operators=count, failed=tuple(failed), worst=worst)


def _trials(backend: Backend) -> list[_Trial]:
    """The case matrices of all operators that a backend has kernels for; those of norms run on the CPU alone."""
    from ..custom_ops.flash_attention import cases as attention
    from ..custom_ops.flash_attention import check as attention_check
    from ..custom_ops.mixture_of_experts import cases as experts
    from ..custom_ops.mixture_of_experts import check as experts_check
    from ..custom_ops.skip_normalization import cases as norms
    from ..custom_ops.skip_normalization import check as norms_check

    def attend(case: attention.Case) -> _Run:
        def run(options: Any) -> tuple[bool, Iterable[tuple[float, float]]]:
            found = attention_check.check_case(case, options, providers=[_PROVIDERS[backend]])
            return found.passed, [(found.error, found.granted)]

        return run

    def normalise(case: norms.Case) -> _Run:
        def run(options: Any) -> tuple[bool, Iterable[tuple[float, float]]]:
            found = norms_check.check_case(case, options)
            return found.passed, zip(found.errors, found.granted, strict=True)

        return run

    def mix(case: experts.Case) -> _Run:
        def run(options: Any) -> tuple[bool, Iterable[tuple[float, float]]]:
            found = experts_check.check_case(case, options, providers=[_PROVIDERS[backend]])
            return found.passed, [(found.error, found.granted)]

        return run

    trials = [_Trial("FlashAttention", c.name, c.signature.op_type, attend(c)) for c in attention.cases()]
    trials += [_Trial("MixtureOfExperts", c.name, c.signature.op_type, mix(c)) for c in experts.cases()]
    if backend == "cpu":
        trials += [_Trial("SkipNormalization", c.name, c.signature.op_type, normalise(c)) for c in norms.cases()]
    return trials


def build_kernels(backend: Backend = "cpu") -> Kernels:
    """Compile the library of a backend where :func:`kernels` finds it.

    Raises:
        ToolchainError: if there are no sources, or a compiler is missing or fails.
    """
    from ..custom_ops.build import build

    build(backend=backend)
    return kernels()


def ops_path(backend: Backend = "cpu") -> Path:
    """Path of a backend's op library, for ``RegisterCustomOpsLibrary`` in C++ and ``op_library_filename`` in Triton.

    Raises:
        ToolchainError: if it is not built.
    """
    path = custom_ops.library_path(backend)
    if path is None:
        raise ToolchainError(
            f"the {backend} library is not built", hint=f"run deployml kernels build --backend {backend}"
        )
    return path
