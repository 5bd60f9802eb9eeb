"""The command line in a process of its own, watched by one that loads nothing: its death becomes a message.

onnxruntime, torch or an op library may crash on a graph, and the system ends the largest process when memory runs out.
Neither can be caught where it happens. So the program starts itself once more, waits, and tells what became of it;
files are written so that a death at any moment leaves whole ones (:mod:`.files`). This costs one start of Python
without the libraries, a tenth of a second, and covers every stage of every command, the reference of a comparison
included; a process for each session would cost seconds and could not time contenders side by side.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

from . import crumbs
from .errors import ToolchainError
from .failures import fail
from .files import recover

__all__ = ["child", "supervised"]

#: With -P: without it the current folder comes first on the path, and a json.py of anybody there would run.
_BOOT: Final = (
    "import sys, json, importlib; sys.path[:] = json.loads(sys.argv[1]); "
    "importlib.import_module(sys.argv[2]).child(*sys.argv[3:])"
)
#: Signals by which a process dies of its own fault.
_CRASHES: Final = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS")
_FORWARDED: Final = ("SIGTERM", "SIGHUP")
_PR_SET_PDEATHSIG: Final = 1
#: Two interrupts within so many seconds are one.
_ONE_INTERRUPT: Final = 0.5
#: Whose code is at fault where the topmost frames lie in it.
_SUSPECTS: Final = ("onnxruntime", "onnxsim", "torch", "onnx")


def supervised(module: str, function: str, arguments: Sequence[str]) -> int:
    """Call ``function(arguments)`` of ``module`` in a fresh process that shares this one's terminal and folder.

    Args:
        module: Its name, dotted.
        function: A function from a list of strings to an exit status.
        arguments: The command line, without the program's name.

    Returns:
        Its exit status; 128 + N where signal N, sent by someone, ended it.

    Raises:
        ToolchainError: if it crashed, or was ended as the system does when memory runs out; says in which stage.
    """
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as pipe:
        try:
            os.set_blocking(writer, False)  # crumbs that nobody reads must not stop the work
            _hold_interrupts()  # the other process begins so too: it hears none before it can answer
            process = _start(module, function, arguments, writer)
        except OSError as error:  # no memory for another process, or none allowed
            _hear_interrupts()
            return _unwatched(module, function, arguments, error)
        finally:
            os.close(writer)
        with _signals_passed_on(process):
            _hear_interrupts()
            status = process.wait()
        os.set_blocking(reader, False)  # some helper of the child may still hold the other end
        said = pipe.read() or b""
    return _judged(status, said, arguments)


def child(descriptor: str, module: str, function: str, *arguments: str) -> None:
    """Body of the process that works. Called by :func:`supervised` only."""
    fd = int(descriptor)
    _end_with_parent()
    if fd >= 0:
        os.set_inheritable(fd, False)  # a helper that outlives the command must not keep the watcher waiting
        crumbs.send_to(fd)
        faulthandler.enable(fd)
    sys.argv[:] = ["deployml", *arguments]
    work = getattr(importlib.import_module(module), function)
    try:
        _answer_once()
        _hear_interrupts()
        status = work(list(arguments))
    except KeyboardInterrupt as error:  # before the command itself could say so
        status = fail(error, arguments)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    crumbs.drop("end", str(status))
    sys.exit(status)


def _unwatched(module: str, function: str, arguments: Sequence[str], error: OSError) -> int:
    """Do the work in this process where the system gives no other: unwatched is better than not at all."""
    reason = error.strerror or type(error).__name__
    print(f"note: no process of its own for the command ({reason}): a crash ends it without a word", file=sys.stderr)
    status: int = getattr(importlib.import_module(module), function)(list(arguments))
    return status


def _hold_interrupts() -> None:
    """Keep a Ctrl-C for later, here and in processes started from here."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _hear_interrupts() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _answer_once() -> None:
    """Take one Ctrl-C that comes twice, to the group and passed on by the watcher, for one; a later one counts anew."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    heard = -math.inf

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        del number, frame
        before, heard = heard, time.monotonic()
        if heard - before > _ONE_INTERRUPT:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, answer)


def _start(module: str, function: str, arguments: Sequence[str], writer: int) -> subprocess.Popen[bytes]:
    shared = os.name == "posix"  # elsewhere a child takes no descriptors: deaths are told without their stage
    fd = str(writer if shared else -1)
    command = [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path), __name__, fd, module, function, *arguments]
    return subprocess.Popen(command, pass_fds=(writer,) if shared else ())


def _end_with_parent() -> None:
    """Let Linux end this process when its watcher is killed: nobody would hear of its outcome."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@contextmanager
def _signals_passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave what is sent to this process to the one that works; a terminal's Ctrl-C reaches both by itself."""

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        with suppress(ProcessLookupError):
            process.send_signal(number)

    interrupt: Callable[[int, FrameType | None], Any] = forward
    if any(os.isatty(fd) for fd in (0, 1, 2)):
        interrupt = _ignore
    wanted = {"SIGINT": interrupt, **dict.fromkeys(_FORWARDED, forward)}
    numbers = {getattr(signal, name): handler for name, handler in wanted.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    del number, frame


def _judged(status: int, said: bytes, arguments: Sequence[str]) -> int:
    """The exit status, or the message on how the process died."""
    end = crumbs.last(said, "end")
    if end is not None:  # a crash while the interpreter went down changes nothing of the outcome
        return int(end)
    if 0 <= status < 256:
        return status
    _clear_up(crumbs.last(said, "model"), crumbs.last(said, "scratch"))
    name = _signal_name(status)
    if status < 0 and name not in (*_CRASHES, "SIGKILL"):
        return 128 - status
    stage = crumbs.last(said, "stage")
    place = f" in the stage '{stage}'" if stage else ""
    stack = said.decode("utf-8", "replace")
    if "--debug" in arguments:
        print("\n".join(_frames(stack)), file=sys.stderr)
    skip = {"validate": ", or leave the comparison out with --no-validate", "bench": ", or --no-bench"}
    other = skip.get(stage or "", "") if arguments[:1] and arguments[0] in ("export", "optimize") else ""
    if name == "SIGKILL" or "MemoryError" in stack:
        raise ToolchainError(
            f"memory ran out{place}: the system ended the process ({name}); files that were there are whole",
            hint=f"free memory, use a machine with more, or smaller inputs{other}",
        )
    raise ToolchainError(
        f"{_culprit(stack)} crashed{place} ({name}); files that were there are whole",
        hint=f"try another version of onnxruntime and of the op library, or --debug to see the place{other}",
    )


def _clear_up(model: str | None, scratch: str | None) -> None:
    """Take away the drafts of files that the process was writing, or finish the renames of complete ones."""
    if scratch is not None and Path(scratch).name.startswith(crumbs.SCRATCH):
        shutil.rmtree(scratch, ignore_errors=True)
    if model is not None:
        with suppress(OSError):
            recover(Path(model))


def _signal_name(status: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}" if status < 0 else f"status {status:#x}"


def _frames(stack: str) -> list[str]:
    """The lines of the fatal error's stack, as :mod:`faulthandler` writes them."""
    lines = stack.splitlines()
    start = next((n for n, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
    return lines[start:]


def _culprit(stack: str) -> str:
    """Which library the crash lies in, judged by the two topmost frames."""
    frames = [line for line in _frames(stack) if line.lstrip().startswith("File ")][:2]
    parts = {part for line in frames for part in Path(line.split('"')[1]).parts}
    return next((name for name in _SUSPECTS if name in parts), "the command")
