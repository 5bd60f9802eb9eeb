"""Call the user's factory: `pkg.mod:build` or `FILE.py:FN`, without arguments, for an `nn.Module`."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ...runtime.errors import InputError
from .imports import current_folder_searched, import_file
from .wording import brief

__all__ = ["build"]

_FORM = "Give --factory pkg.mod:build or --factory FILE.py:FN; FN takes no arguments and returns the nn.Module."


def build(factory: str | Callable[[], Any]) -> Any:
    """Build a module by the user's factory.

    Args:
        factory: ``pkg.mod:build`` or ``FILE.py:FN``; from Python also the function itself.

    Returns:
        The ``torch.nn.Module`` that the function returned.

    Raises:
        InputError: Malformed text, no such module or function, an error inside it, or another return type.
    """
    if callable(factory):
        return _call(factory, getattr(factory, "__name__", "factory"))
    place, separator, name = factory.rpartition(":")
    if not separator or not place or not name:
        raise InputError(f"--factory {factory!r} names no function", hint=_FORM)
    with current_folder_searched():
        return _call(_lookup(_import(place, factory), name, factory), factory)


def _call(function: Callable[[], Any], label: str) -> Any:
    from torch import nn

    try:
        built = function()
    except (Exception, SystemExit) as e:
        raise InputError(
            f"--factory {label} failed: {brief(e)}",
            hint="The function is called without arguments; mend it, or wrap it in one that needs none.",
        ) from e
    if isinstance(built, nn.Module):
        return built
    if isinstance(built, type) and issubclass(built, nn.Module):
        hint = f"Return an instance: `return {built.__name__}(...)`."
    else:
        hint = "Return the module itself, nothing around it."
    raise InputError(f"--factory {label} returned {_type_name(built)}, not an nn.Module", hint=hint)


def _import(place: str, factory: str) -> ModuleType:
    if place.endswith(".py"):
        return import_file(Path(place))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as e:
        if e.name is not None and (place == e.name or place.startswith(e.name + ".")):
            raise InputError(
                f"--factory {factory}: there is no module {e.name}",
                hint="Run deployml from the folder that holds it, install it, or give the file: FILE.py:FN.",
            ) from e
        raise InputError(
            f"--factory {factory}: {place} cannot be imported: {brief(e)}", hint="Install what it needs."
        ) from e
    except (Exception, SystemExit) as e:
        raise InputError(f"--factory {factory}: {place} cannot be imported: {brief(e)}", hint="Mend it.") from e


def _lookup(module: ModuleType, name: str, factory: str) -> Any:
    function = getattr(module, name, None)
    if callable(function):
        return function
    if function is not None:
        raise InputError(f"--factory {factory}: {name} is {_type_name(function)}, not a function", hint=_FORM)
    own = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
    close = difflib.get_close_matches(name, own, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"It has: {', '.join(own[:12]) or 'no functions'}."
    raise InputError(f"--factory {factory}: there is no {name} in {module.__name__}", hint=hint)


def _type_name(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    prefix = "the class " if isinstance(value, type) else "a "
    return f"{prefix}{kind.__name__}" if value is not None else "None"
