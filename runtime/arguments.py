"""Options of a command line in groups: frozen dataclasses whose fields a command takes as options of its own."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

__all__ = ["keywords", "with_groups"]


def with_groups(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the fields of its dataclass parameters as parameters, for a library that reads signatures.

    ``def run(path: Path, how: How)`` with ``How(fast: bool = False)`` becomes ``run(path, *, fast=False)``. Options
    appear in the order in which they are written; defaults and annotations are those of the fields.

    Args:
        command: The function; parameters annotated with a dataclass are groups, the others stay as they are.
    """
    hints = get_type_hints(command, include_extras=True)
    plain, groups = [], {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not is_dataclass(kind):
            plain.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        groups[parameter.name] = kind
        types = get_type_hints(kind, include_extras=True)
        plain += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=types[f.name])
            for f in fields(kind)
        ]

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        return command(**given, **made)

    run.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in plain}
    del run.__wrapped__  # or the original's annotations would be found through it
    return run


def keywords(*groups: Any) -> dict[str, Any]:
    """The fields that were given, as keyword arguments; where one is None the callee's own default holds."""
    given = {f.name: getattr(group, f.name) for group in groups for f in fields(group)}
    return {name: value for name, value in given.items() if value is not None}
