"""Execution providers: which a target asks for, and why one that was asked for did not come up."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Final

import onnxruntime
from onnx.parser import parse_model

from .errors import InputError, ToolchainError
from .target import PROVIDERS, Target, TargetName

__all__ = [
    "CPU",
    "check_available",
    "check_usable",
    "missing_library",
    "preload",
    "providers_for",
    "quiet",
    "unavailable",
]

CPU: Final = "CPUExecutionProvider"

#: Providers that can carry an AMD target, best first. ROCm's own ended with onnxruntime 1.22.
_ROCM: Final = ("ROCMExecutionProvider", "MIGraphXExecutionProvider")

_LIBRARIES: Final[dict[str, str]] = {
    "CUDAExecutionProvider": "libonnxruntime_providers_cuda.so",
    "ROCMExecutionProvider": "libonnxruntime_providers_rocm.so",
    "MIGraphXExecutionProvider": "libonnxruntime_providers_migraphx.so",
}

_INSTALL: Final[dict[str, str]] = {
    "CUDAExecutionProvider": "pip install 'onnxruntime-gpu[cuda,cudnn]'",
    "ROCMExecutionProvider": "pip install onnxruntime-rocm  (with ROCm 7 installed)",
    "MIGraphXExecutionProvider": "pip install onnxruntime-migraphx  (with ROCm 7 installed)",
}

_PROBE: Final = """<ir_version: 10, opset_import: ["": 20]>
g (float[1] a) => (float[1] b) { b = Add(a, a) }"""


def providers_for(target: Target | TargetName) -> tuple[str, ...]:
    """Provider names to ask onnxruntime for, the one that must carry the graph first, the CPU last.

    Raises:
        InputError: if there is no such target.
    """
    name = target.name if isinstance(target, Target) else target
    if name not in PROVIDERS:
        raise InputError(f"there is no target '{name}'", hint=f"choose one of {', '.join(PROVIDERS)}")
    wanted = PROVIDERS[name]
    if name == "rocm":
        available = onnxruntime.get_available_providers()
        wanted = next((p for p in _ROCM if p in available), wanted)
    return (wanted,) if wanted == CPU else (wanted, CPU)


def check_available(provider: str) -> None:
    """Say so when the installed onnxruntime was built without ``provider``.

    Raises:
        ToolchainError: with the packages to install.
    """
    if provider in onnxruntime.get_available_providers():
        return
    raise ToolchainError(
        f"the installed onnxruntime {onnxruntime.__version__} was built without {provider}",
        hint=f"{_install(provider)}  (after pip uninstall onnxruntime), or run with --target cpu",
    )


def check_usable(provider: str, where: str | None = None) -> None:
    """Open a model of one node on ``provider``: one that is listed may still not load, or find no device.

    Raises:
        ToolchainError: with the dynamic linker's words where there are any.
    """
    if provider == CPU:
        return
    check_available(provider)
    preload(provider)
    options = onnxruntime.SessionOptions()
    model = parse_model(_PROBE).SerializeToString()
    with quiet(options, provider):
        try:
            session = onnxruntime.InferenceSession(model, options, providers=[provider, CPU])
        except Exception as error:  # onnxruntime's classes share no base; any of them means that it does not come up
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise unavailable(provider, [], where, said[:200]) from error
    if provider not in session.get_providers():
        raise unavailable(provider, session.get_providers(), where)


@contextmanager
def quiet(options: onnxruntime.SessionOptions, provider: str) -> Iterator[None]:
    """Keep onnxruntime from printing of a session, now and when it runs: reasons travel in the exceptions instead.

    Its Python layer prints a failed provider on stdout, which belongs to ``--json``.
    """
    options.log_severity_level = 4
    if provider != CPU:
        onnxruntime.set_default_logger_severity(4)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        if provider != CPU:
            onnxruntime.set_default_logger_severity(2)  # its default; there is no way to read it


def preload(provider: str) -> None:
    """Load CUDA and cuDNN from pip packages before a session looks for them on the library path."""
    loader = getattr(onnxruntime, "preload_dlls", None)  # since onnxruntime 1.21
    if provider != "CUDAExecutionProvider" or loader is None:
        return
    # It prints each library that it misses. What it raises beyond that is not ours to judge: where a library is needed
    # and does not load, the session does not come up on the provider, and that is an error with the linker's words.
    with suppress(Exception), redirect_stdout(io.StringIO()):
        loader()


def missing_library(provider: str) -> str | None:
    """The dynamic linker's sentence on why the provider's library does not load; None when it does."""
    name = _LIBRARIES.get(provider)
    folder = Path(onnxruntime.__file__).parent / "capi"
    if name is None or not (folder / name).exists():
        return None
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / name))
    except OSError as error:
        return str(error)
    return None


def unavailable(provider: str, got: Sequence[str], where: str | None, said: str | None = None) -> ToolchainError:
    """The error for a session that came up without the provider that must carry it, or that ``said`` why it did not."""
    why = missing_library(provider) or said
    reason = f": {why}" if why else "; onnxruntime gave no reason (is there a device and a driver?)"
    hint = f"{_install(provider)}, or --target cpu, or --allow-cpu-fallback to accept the CPU"
    came = f"got only {', '.join(got)}" if got else "got nothing"
    return ToolchainError(f"asked for {provider}, {came}{reason}", hint=hint, where=where)


def _install(provider: str) -> str:
    return _INSTALL.get(provider, "install an onnxruntime with that provider")
