"""Look up names given as text: factories, and globals the user allowed. The current folder is searched too."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ...runtime.errors import InputError
from .wording import brief

__all__ = ["current_folder_searched", "import_file", "resolve"]


@contextlib.contextmanager
def current_folder_searched() -> Iterator[None]:
    """Search the current folder for imports, last, so that it can hide no installed package."""
    folder = os.getcwd()
    added = folder not in sys.path and "" not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def import_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own (its ``__name__`` is not ``__main__``) and return it.

    Raises:
        InputError: There is no such file, or it fails; the message names the line that failed.
    """
    if not path.is_file():
        raise InputError(f"there is no Python file {path}", hint="Give --factory FILE.py:FN with an existing file.")
    name = f"deployml_factory_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path.name} is no Python file", hint="Give --factory FILE.py:FN or --factory pkg.mod:fn.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        sys.modules.pop(name, None)
        raise InputError(
            f"{path.name} cannot be run: {brief(e)}",
            hint="Mend it, and put what should run only as a script under `if __name__ == '__main__':`.",
        ) from e
    finally:
        sys.path.remove(folder)
    return module


def resolve(dotted: str) -> Any:
    """Import ``a.b.C`` or ``a.b.Outer.Inner`` and return the object.

    Raises:
        InputError: No such module or no such name in it.
    """
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as e:
            if e.name is not None and (module == e.name or module.startswith(e.name + ".")):
                continue
            raise _cannot_import(dotted, e) from e
        except Exception as e:
            raise _cannot_import(dotted, e) from e
        try:
            for part in parts[cut:]:
                found = getattr(found, part)
        except AttributeError as e:
            raise _cannot_import(dotted, e) from e
        return found
    raise InputError(
        f"{dotted} cannot be imported: no module {parts[0]} is installed or lies in this folder",
        hint=f"Install the package that holds {parts[0]}, or run deployml from the folder of its source code.",
    )


def _cannot_import(dotted: str, error: Exception) -> InputError:
    return InputError(
        f"{dotted} cannot be imported: {brief(error)}",
        hint="Install the version of the package that saved the model, or give --factory pkg.mod:build.",
    )
