"""Load torch.save files: with tensors only by default, with named or full trust when the user grants it."""

from __future__ import annotations

import contextlib
import pickle
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runtime.errors import DeploymlError, InputError
from .imports import current_folder_searched, resolve
from .opened import Trust
from .pickles import Globals, find_globals, refusal
from .sniff import Format
from .wording import brief, export_command, printable

__all__ = ["Standin", "read_object", "read_weights_only"]


class Standin:
    """Takes the place of a class that is not loaded: keeps what the pickle gave it and runs nothing.

    Attributes:
        state: What the pickle would have restored (the ``__dict__`` of a module), or None.
    """

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __new__(cls, *_: Any) -> Standin:
        made = super().__new__(cls)
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_object(path: Path, form: Format, trust: Trust) -> Any:
    """Unpickle a file as far as the user's trust reaches.

    Returns:
        Whatever was saved: a module, a state_dict, a checkpoint.

    Raises:
        InputError: Not trusted (lists the globals and the command that would accept them), damaged, or a class
            that cannot be imported.
    """
    found = find_globals(path, form)
    with current_folder_searched():
        if trust.pickle:
            return _load(path, form, found, safe=False)
        if form is Format.PICKLE:
            raise refusal(path, found) if found.blocked else _not_by_torch(path)
        missing = [name for name in found.blocked if name not in trust.globals]
        if missing:
            raise refusal(path, found)
        with _allowed(path, found.blocked):
            return _load(path, form, found, safe=True)


def read_weights_only(path: Path, form: Format) -> tuple[Any, tuple[str, ...]]:
    """Unpickle a file with a stand-in for every class: the tensors come out, no code of the file or of a class runs.

    Returns:
        The object with :class:`Standin` in the place of unknown classes, and the names that were replaced.
    """
    found = find_globals(path, form)
    if form is Format.PICKLE or found.hostile:
        raise refusal(path, found) if found.blocked else _not_by_torch(path)
    import torch

    pairs: list[Any] = []
    for name in found.blocked:
        # torch's safe unpickler fills only dict, OrderedDict and Counter.
        empty_dict = name == "collections.defaultdict"
        pairs.append((_EmptyDict if empty_dict else type("Standin", (Standin,), {}), name))
    with torch.serialization.safe_globals(pairs):
        return _load(path, form, found, safe=True), found.blocked


class _EmptyDict:
    def __new__(cls, *_: Any) -> Any:
        return OrderedDict()


@contextlib.contextmanager
def _allowed(path: Path, names: tuple[str, ...]) -> Iterator[None]:
    import torch

    pairs: list[Any] = [(_resolve(path, name), name) for name in names]
    with torch.serialization.safe_globals(pairs):
        yield


def _resolve(path: Path, name: str) -> Any:
    if not name.startswith("__main__."):
        return resolve(name)
    found = getattr(sys.modules["__main__"], name.partition(".")[2], None)
    if found is None:
        raise _in_main(path, (name,))
    return found


def _load(path: Path, form: Format, found: Globals, *, safe: bool) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if form is Format.PICKLE:
                with path.open("rb") as file:
                    return pickle.load(file)
            # A file object: by its name alone torch would take an ending for a format.
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=safe)
    except DeploymlError:
        raise
    except (ModuleNotFoundError, AttributeError, ImportError) as e:
        raise _not_importable(path, found, e) from e
    except pickle.UnpicklingError as e:
        raise _unpickling_failed(path, found, e, safe) from e
    except MemoryError as e:
        raise InputError(f"{path.name} asks for more memory than there is", hint="Load it where there is more.") from e
    except Exception as e:
        raise _failed(path, e) from e


def _unpickling_failed(path: Path, found: Globals, error: Exception, safe: bool) -> InputError:
    if not safe:
        return _failed(path, error)
    reason = brief(error.__cause__ or error).split("Please file an issue")[0]
    first = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0] or reason
    return InputError(
        f"{path.name} uses the pickle in a way that cannot be allowed name by name ({printable(first)})",
        hint=f"If you trust whoever made the file: {export_command(path)} --trust-pickle. Otherwise save the "
        "state_dict and give --factory pkg.mod:build.",
    )


def _not_importable(path: Path, found: Globals, error: Exception) -> InputError:
    if found.in_main and "__main__" in str(error):
        return _in_main(path, found.in_main)
    return InputError(
        f"{path.name} holds an object whose class cannot be imported here: {brief(error)}",
        hint="Run deployml from the folder of the model's source code, install the package version that saved it, or "
        "give --factory pkg.mod:build to read the weights only.",
    )


def _in_main(path: Path, names: tuple[str, ...]) -> InputError:
    return InputError(
        f"{path.name} holds {', '.join(names[:8])}: a class of the script that saved it, which cannot be imported",
        hint=f"{export_command(path)} --factory FILE.py:FN, where FN in that script builds the model without "
        "arguments. The weights are read from the file.",
    )


def _not_by_torch(path: Path) -> InputError:
    return InputError(
        f"{path.name} was written by pickle, not by torch.save",
        hint=f"Save it by torch.save(model.state_dict(), ...); or, if you trust it: {export_command(path)} "
        "--trust-pickle.",
    )


def _failed(path: Path, error: Exception) -> InputError:
    damaged = isinstance(error, EOFError) or "PytorchStreamReader" in str(error) or "unexpected EOF" in str(error)
    if damaged or isinstance(error, ValueError | OSError | IndexError | KeyError | AssertionError):
        return InputError(
            f"{path.name} is truncated or damaged ({brief(error)})",
            hint="Copy or download it again and compare its size with the original.",
        )
    return InputError(
        f"{path.name} cannot be loaded: {brief(error)}",
        hint="Load it by torch.load in Python first; the versions of its packages may differ from those here.",
    )
