"""Read a pickle without running it: which classes and functions does it want, and are they a model's business?"""

from __future__ import annotations

import io
import pickletools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ...runtime.errors import InputError
from .archive import open_archive
from .sniff import Format
from .wording import export_command, printable

__all__ = ["Globals", "find_globals", "refusal", "scan"]

#: Bytes and opcodes looked at. A model with 100,000 tensors stays below a tenth of it.
_MAX_BYTES = 256 * 1024 * 1024
_MAX_OPCODES = 5_000_000
#: torch's old format: magic number, protocol, system facts, the object, the storage keys.
_LEGACY_PICKLES = 5
_SHOWN = 40
#: Modules no model needs to name. A pickle that does is an attack.
_HOSTILE = frozenset({
    "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "pty", "runpy", "ctypes", "importlib",
    "webbrowser", "code", "codeop", "commands", "multiprocessing", "asyncio", "http", "urllib",
    "requests", "pip", "ensurepip", "venv", "signal", "threading", "_thread", "pickle", "_pickle",
    "marshal", "types", "bdb", "pdb", "timeit", "cProfile", "profile", "trace", "builtins.eval",
    "builtins.exec", "builtins.compile", "builtins.open", "builtins.__import__", "builtins.input",
    "builtins.breakpoint", "io.open", "io.FileIO", "pathlib",
})  # fmt: skip
_STRINGS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


@dataclass(frozen=True)
class Globals:
    """The dotted names a pickle looks up, in order of first use.

    Attributes:
        names: All of them.
        blocked: Those that ``torch.load(weights_only=True)`` does not allow by itself.
    """

    names: tuple[str, ...]
    blocked: tuple[str, ...]

    @property
    def hostile(self) -> tuple[str, ...]:
        """Names that only an attack would look up."""
        return tuple(name for name in self.blocked if _is_hostile(name))

    @property
    def in_main(self) -> tuple[str, ...]:
        """Names of the script that saved the file, which no import can find."""
        return tuple(name for name in self.names if name.startswith("__main__."))


def find_globals(path: Path, form: Format) -> Globals:
    """List every global a torch.save file or a plain pickle looks up. Nothing is executed or imported.

    Raises:
        InputError: The pickle is damaged or too large to be a model's.
    """
    if form is Format.TORCH_ZIP:
        data, count = open_archive(path).read("data.pkl", limit=_MAX_BYTES), 1
    else:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
        count = _LEGACY_PICKLES if form is Format.TORCH_LEGACY else 1
    try:
        names = scan(data, pickles=count)
    except (ValueError, UnicodeDecodeError, IndexError, OverflowError, MemoryError) as e:
        raise InputError(
            f"{path.name}: the pickle inside ends or breaks early ({e})",
            hint="The file is truncated or damaged: copy or download it again.",
        ) from e
    allowed = _allowed_by_torch()
    return Globals(names, tuple(name for name in names if name not in allowed))


def scan(data: bytes, *, pickles: int = 1) -> tuple[str, ...]:
    """List the globals of consecutive pickles in ``data``, in order of first use.

    Raises:
        ValueError: Not a pickle, cut off, or more opcodes than a model's has.
    """
    stream, found = io.BytesIO(data), {}
    for _ in range(pickles):
        for name in _walk(stream):
            found[name] = None
    return tuple(found)


def _walk(stream: io.BytesIO) -> Iterator[str]:
    """Follow the strings on the stack and in the memo, so that STACK_GLOBAL can be told too."""
    recent: list[str | None] = [None, None]
    memo: dict[int, str | None] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > _MAX_OPCODES:
            raise ValueError("more instructions than any model needs")
        name = opcode.name
        if name in _PUTS:
            memo[int(argument)] = recent[1]
        elif name == "MEMOIZE":
            memo[len(memo)] = recent[1]
        elif name in ("GLOBAL", "INST"):
            yield _canonical(*argument.split(" ", 1))
            recent = [recent[1], None]
        elif name == "STACK_GLOBAL":
            yield _canonical(recent[0] or "?", recent[1] or "?")
            recent = [None, None]
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield f"copyreg extension {argument}"
        else:
            pushed = argument if name in _STRINGS else memo.get(argument) if name in _GETS else None
            recent = [recent[1], pushed]


def _canonical(module: str, name: str) -> str:
    """Python 2 names, which torch.save still writes (protocol 2), in their Python 3 spelling."""
    from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _allowed_by_torch() -> frozenset[str]:
    from torch import _weights_only_unpickler as unpickler

    return frozenset(unpickler._get_allowed_globals()) | frozenset(unpickler._get_user_allowed_globals())


def _is_hostile(name: str) -> bool:
    # A name with blanks, quotes or control characters is no name; it would also end up in a command to copy.
    forged = re.fullmatch(r"[A-Za-z_][\w.<>]*", name, re.ASCII) is None
    return forged or name in _HOSTILE or name.split(".", 1)[0] in _HOSTILE


def refusal(path: Path, found: Globals) -> InputError:
    """Build the error that says why a pickle is not loaded and which command would load it."""
    if found.hostile:
        return InputError(
            f"{path.name} would call {', '.join(map(printable, found.hostile[:_SHOWN]))} when loaded: no model needs "
            "that. Nothing was run",
            hint="Treat the file as an attack. Ask its maker for a safetensors file or a torch.export program.",
        )
    listed = "\n     ".join(_shorten(found.blocked))
    flags = " ".join(f"--allow-global {shlex.quote(name)}" for name in found.blocked)
    message = (
        f"{path.name} is a pickle of Python objects; loading it runs code. It was not loaded. "
        f"Globals it asks for ({len(found.blocked)}):\n     {listed}\n"
    )
    if found.in_main:
        return InputError(
            message + f"  {', '.join(found.in_main[:_SHOWN])} lived in the script that saved it (__main__), "
            "which no other program can import",
            hint=f"{export_command(path)} --factory FILE.py:FN, where FN in that script builds the model "
            "without arguments: only the weights are then read from the file, and nothing in it is run.",
        )
    return InputError(
        message.rstrip(),
        hint=f"If you trust these names: {export_command(path)} {flags}\n"
        f"     If you trust whoever made the file: {export_command(path)} --trust-pickle\n"
        f"     Without any trust: {export_command(path)} --factory pkg.mod:build reads the weights only.",
    )


def _shorten(names: tuple[str, ...]) -> list[str]:
    if len(names) <= _SHOWN:
        return list(names)
    return [*names[:_SHOWN], f"... and {len(names) - _SHOWN} more"]
