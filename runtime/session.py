"""Opening a model in onnxruntime: on the provider that was asked for, or with a clear reason why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from .errors import DeploymlError, InputError, ToolchainError
from .files import recover
from .load_crash import optimizers_to_avoid
from .load_errors import explain_load_error
from .providers import CPU, check_available, check_usable, preload, providers_for, quiet, unavailable
from .target import Target, TargetName

__all__ = ["Optimize", "feeds_for", "nodes_per_provider", "open_session", "session_dtype"]

Optimize = Literal["all", "extended", "basic", "none"]

_LEVELS: Final = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_RECORD_PLACEMENT: Final = "session.record_ep_graph_assignment_info"
_DATA_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_STOP_SPINNING: Final = "session.force_spinning_stop"

#: onnxruntime's name of a tensor's element type to numpy's. bfloat16 and the 8-bit floats come from ml_dtypes.
_DTYPES: Final = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "bool": "bool",
    "string": "object",
} | {kind: kind for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")}


def open_session(
    model: str | Path | bytes,
    target: Target | TargetName = "cpu",
    *,
    libraries: Sequence[str | Path] = (),
    data_folder: str | Path | None = None,
    threads: int | None = None,
    allow_cpu_fallback: bool = False,
    optimize: Optimize = "all",
    stop_spinning: bool = False,
    tf32: bool = False,
    config: Mapping[str, str] | None = None,
    profile: str | None = None,
) -> onnxruntime.InferenceSession:
    """Open ``model`` on the provider of ``target`` and make sure that it really runs there.

    Args:
        model: Path of an ONNX file, or its bytes.
        target: Target or its name; "portable" runs on the CPU provider.
        libraries: Op libraries to register first.
        data_folder: Folder of the external weights, for a model given as bytes.
        threads: Threads within an operator; None leaves the choice to onnxruntime.
        allow_cpu_fallback: Accept a session on the CPU where another provider was asked for.
        optimize: How far onnxruntime may rewrite the graph at load.
        stop_spinning: Let worker threads sleep as soon as a run ends, so that contenders timed in turn do not
            disturb each other.
        tf32: Allow TensorFloat-32 products on CUDA (onnxruntime's default; here it is off unless asked for).
        config: Further session configuration entries.
        profile: Beginning of the profile file's path; None: nothing is profiled.

    Raises:
        InputError: if the file or its weights are missing, truncated or out of place.
        UnsupportedError: if an operator or type has no implementation.
        ToolchainError: if onnxruntime, a provider or an op library is missing or too old, or memory runs out.
    """
    where = "the model" if isinstance(model, bytes) else Path(model).name
    wanted = providers_for(target)
    usable = _usable_providers(wanted, allow_cpu_fallback)
    options = _options(threads, optimize, stop_spinning, data_folder, config or {})
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, profile
    _register(options, libraries)
    source = model if isinstance(model, bytes) else _existing(Path(model))
    avoided = optimizers_to_avoid(source if isinstance(source, bytes) else Path(source))
    preload(usable[0])
    with quiet(options, usable[0]):
        try:
            session = onnxruntime.InferenceSession(
                source,
                options,
                providers=[_with_options(p, tf32) for p in usable],
                disabled_optimizers=list(avoided) or None,
            )
        except DeploymlError:
            raise
        except Exception as error:  # onnxruntime's classes share no base; each becomes one of ours
            if not allow_cpu_fallback:  # a kernel that the CPU lacks is no news where the provider never came up
                check_usable(wanted[0], where)
            names = tuple(Path(lib).name for lib in libraries)
            raise explain_load_error(error, where=where, libraries=names) from error
    if not allow_cpu_fallback:
        _check_placement(session, wanted[0], where)
    return session


def nodes_per_provider(session: onnxruntime.InferenceSession) -> dict[str, int]:
    """Count the graph's nodes by the provider that runs them, most first.

    Empty where the installed onnxruntime cannot tell (before 1.24) or the session was not made by
    :func:`open_session`.
    """
    ask = getattr(session, "get_provider_graph_assignment_info", None)
    if ask is None:
        return {}
    counts: dict[str, int] = {}
    with suppress(Fail):  # placement was not recorded when the session was made
        for part in ask():
            counts[part.ep_name] = counts.get(part.ep_name, 0) + len(part.get_nodes())
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def session_dtype(kind: str) -> np.dtype[Any]:
    """The numpy dtype of onnxruntime's "tensor(float)" and the like.

    Raises:
        InputError: if it is no tensor type that numpy can hold.
    """
    name = _DTYPES.get(kind.removeprefix("tensor(").removesuffix(")"))
    if name == "bfloat16":
        import ml_dtypes  # comes with onnx

        return np.dtype(ml_dtypes.bfloat16)
    if name is None:
        raise InputError(f"inputs of type {kind} are not supported", hint="use tensors of a number type")
    return np.dtype(name)


def feeds_for(session: onnxruntime.InferenceSession, named: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Check ``named`` arrays against the session's inputs and return them in the session's order.

    Nothing is cast: a wrong dtype is the user's to see.

    Raises:
        InputError: naming the input that is missing, unknown, of a wrong dtype, rank or fixed size, or whose
            symbolic size differs from another input's of the same name.
    """
    inputs = session.get_inputs()
    expected = [i.name for i in inputs]
    _check_names(expected, list(named))
    sizes: dict[str, tuple[int, str]] = {}
    feeds = {}
    for spec in inputs:
        array = np.asarray(named[spec.name])
        _check_array(spec.name, array, session_dtype(spec.type), list(spec.shape))
        _check_symbols(spec.name, array, list(spec.shape), sizes)
        feeds[spec.name] = np.ascontiguousarray(array) if array.ndim else array
    return feeds


def _usable_providers(wanted: tuple[str, ...], allow_cpu_fallback: bool) -> tuple[str, ...]:
    if allow_cpu_fallback and wanted[0] not in onnxruntime.get_available_providers():
        return (CPU,)
    check_available(wanted[0])
    return wanted


def _with_options(provider: str, tf32: bool) -> str | tuple[str, dict[str, str]]:
    if provider == "CUDAExecutionProvider":
        return provider, {"use_tf32": str(int(tf32))}
    return provider


def _options(
    threads: int | None,
    optimize: Optimize,
    stop_spinning: bool,
    data_folder: str | Path | None,
    config: Mapping[str, str],
) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimize]
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    entries = {_RECORD_PLACEMENT: "1"}
    if stop_spinning:
        entries[_STOP_SPINNING] = "1"
    if data_folder is not None:
        entries[_DATA_FOLDER] = str(Path(data_folder).absolute())
    for key, value in (entries | dict(config)).items():
        options.add_session_config_entry(key, value)
    return options


def _register(options: onnxruntime.SessionOptions, libraries: Sequence[str | Path]) -> None:
    for library in libraries:
        path = Path(library)
        if not path.is_file():
            raise ToolchainError(
                f"there is no op library '{path.name}'", hint="build it: deployml kernels build", where=str(path)
            )
        try:
            options.register_custom_ops_library(str(path.absolute()))
        except Exception as error:
            raise explain_load_error(error, where=path.name) from error


def _existing(path: Path) -> str:
    if not path.exists():
        with suppress(OSError):  # a killed writer may have left complete files that only wait for their rename
            recover(path)
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not an ONNX file", hint="name the .onnx file inside it")
    if not path.is_file():
        raise InputError(f"there is no file '{path}'", hint="check the path")
    return str(path)


def _check_placement(session: onnxruntime.InferenceSession, provider: str, where: str) -> None:
    got = session.get_providers()
    if provider not in got:
        raise unavailable(provider, got, where)
    counts = nodes_per_provider(session)
    if counts and provider != CPU and not counts.get(provider):
        raise ToolchainError(
            f"{provider} came up but runs no node of '{where}': all {sum(counts.values())} are on the CPU",
            hint="choose --target cpu, or --allow-cpu-fallback to accept it",
        )


def _check_names(expected: Sequence[str], given: Sequence[str]) -> None:
    missing = [n for n in expected if n not in given]
    unknown = [n for n in given if n not in expected]
    if not missing and not unknown:
        return
    parts = [f"missing {', '.join(missing)}"] if missing else []
    parts += [f"unknown {', '.join(unknown)}"] if unknown else []
    raise InputError(
        f"the inputs do not fit the model: {'; '.join(parts)}", hint=f"it takes {', '.join(expected) or 'none'}"
    )


def _check_array(name: str, array: np.ndarray, dtype: np.dtype[Any], shape: Sequence[int | str | None]) -> None:
    wanted = f"{dtype}[{', '.join('?' if d is None else str(d) for d in shape)}]"
    got = f"{array.dtype}{list(array.shape)}"
    if array.dtype != dtype and dtype != np.dtype(object):
        raise InputError(f"input '{name}' is {got}, the model takes {wanted}", hint=f"cast it to {dtype}")
    fixed = zip(array.shape, shape, strict=False)
    if array.ndim != len(shape) or any(isinstance(want, int) and have != want for have, want in fixed):
        raise InputError(f"input '{name}' is {got}, the model takes {wanted}", hint="give it that shape")


def _check_symbols(
    name: str, array: np.ndarray, shape: Sequence[int | str | None], sizes: dict[str, tuple[int, str]]
) -> None:
    for size, symbol in zip(array.shape, shape, strict=True):
        if not isinstance(symbol, str):
            continue
        first, owner = sizes.setdefault(symbol, (size, name))
        if first != size:
            raise InputError(
                f"inputs '{owner}' and '{name}' disagree on '{symbol}': {first} and {size}",
                hint="give them the same size there",
            )
