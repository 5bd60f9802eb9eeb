"""Running a step in a process of its own, so that a crash, a hang or a lack of memory there is a message here."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from . import errors
from .errors import DeploymlBug, DeploymlError, ToolchainError
from .memory import human_bytes

__all__ = ["is_out_of_memory", "out_of_memory", "run_isolated"]

T = TypeVar("T")

#: With -P: without it the current folder comes first on the path, and a json.py of anybody there would run.
_BOOT: Final = (
    "import sys, json, importlib; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).child(sys.argv[3])"
)
_NO_MEMORY_HINT: Final = "free memory, use smaller shapes or a machine with more memory, or skip this step"
_TAIL_BYTES: Final = 4000


def run_isolated(
    function: Callable[..., T],
    *args: Any,
    step: str,
    timeout: float | None = None,
    memory_limit: int | None = None,
    **kwargs: Any,
) -> T:
    """Call ``function(*args, **kwargs)`` in a fresh Python process and return its result.

    Args:
        function: A function of an importable module (not of ``__main__``), found again by its name.
        args: Its arguments; they and the result travel as pickles between the two processes of ours.
        step: What this is, for messages: "validation".
        timeout: Seconds after which the process is ended.
        memory_limit: Bytes of address space it may use (RLIMIT_AS; where the system has it).
        kwargs: Its keyword arguments.

    Raises:
        ToolchainError: if the process crashed, ran out of memory or of time; names the step.
        DeploymlError: what the function itself raised.
        DeploymlBug: if the function raised anything else; the message holds the child's traceback.
    """
    if function.__module__ == "__main__" or "<" in function.__qualname__:
        raise DeploymlBug(f"{function.__qualname__} cannot be found by name in another process")
    with tempfile.TemporaryDirectory(prefix="deployml-") as name:
        folder = Path(name)
        job = (function.__module__, function.__qualname__, args, kwargs, memory_limit)
        (folder / "job").write_bytes(pickle.dumps(job))
        status, said = _spawn(folder, timeout, step)
        answer = folder / "answer"
        if status == 0 and answer.exists():
            return _unpack(pickle.loads(answer.read_bytes()), step, memory_limit)
    raise _died(status, said, step, memory_limit)


def child(folder: str) -> None:
    """Body of the other process: read the job, do it, write the answer. Called by :func:`run_isolated` only."""
    place = Path(folder)
    module, qualname, args, kwargs, memory_limit = pickle.loads((place / "job").read_bytes())
    if memory_limit is not None:
        _limit_memory(memory_limit)
    answer: tuple[str, Any]
    try:
        target: Any = importlib.import_module(module)
        for part in qualname.split("."):
            target = getattr(target, part)
        answer = ("ok", target(*args, **kwargs))
        packed = pickle.dumps(answer)
    except DeploymlError as error:
        packed = pickle.dumps(("error", (type(error).__name__, error.message, error.hint, error.where)))
    except MemoryError:
        packed = pickle.dumps(("memory", None))
    except BaseException as error:
        kind = "memory" if is_out_of_memory(error) else "bug"
        packed = pickle.dumps((kind, traceback.format_exc()))
    draft = place / "answer.draft"
    draft.write_bytes(packed)
    os.replace(draft, place / "answer")


def _spawn(folder: Path, timeout: float | None, step: str) -> tuple[int, str]:
    """Run the child; return its exit status and the end of what it printed."""
    command = [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), __name__, str(folder)]
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ToolchainError(
                f"{step} took longer than {timeout:g} seconds and was ended",
                hint="use smaller shapes or a longer limit, or skip this step",
            ) from None
        finally:
            _end(process)
    return process.returncode, log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and what it started; nothing happens to one that is done."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
        process.wait()


def _unpack(answer: tuple[str, Any], step: str, memory_limit: int | None) -> Any:
    kind, value = answer
    if kind == "ok":
        return value
    if kind == "error":
        name, message, hint, where = value
        raise getattr(errors, name, ToolchainError)(message, hint=hint, where=where)
    if kind == "memory":
        raise out_of_memory(step, memory_limit)
    raise DeploymlBug(f"{step} raised in its own process:\n{value}")


def _died(status: int, said: str, step: str, memory_limit: int | None) -> ToolchainError:
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "")
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        if -status == getattr(signal, "SIGKILL", 9) or "bad_alloc" in said:
            return out_of_memory(step, memory_limit, f" (ended by {name})")
        return ToolchainError(
            f"{step} crashed ({name}){': ' + last[:300] if last else ''}",
            hint="this is a fault of onnxruntime or of an op library: try another version, or skip this step",
        )
    if "MemoryError" in said or "bad_alloc" in said:
        return out_of_memory(step, memory_limit)
    return ToolchainError(
        f"{step} ended with status {status} and no result{': ' + last[:300] if last else ''}",
        hint="run it again; if that repeats, report it as a bug",
    )


def out_of_memory(step: str, memory_limit: int | None = None, how: str = "") -> ToolchainError:
    """The error that says so of a step; with the limit that was set for it, in bytes, and how it ended."""
    limit = f" of its limit of {human_bytes(memory_limit)}" if memory_limit is not None else ""
    return ToolchainError(f"{step} ran out of memory{limit}{how}", hint=_NO_MEMORY_HINT)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or onnxruntime says that memory ran out."""
    text = str(error)
    said = ("bad_alloc", "Failed to allocate memory", "can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in text for words in said)


def _limit_memory(limit: int) -> None:
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
