"""Errors about inputs that teach: forward's signature, and a line to copy."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable
from typing import Any

from ...runtime.errors import InputError
from .fields import parameters_of

__all__ = ["check_names", "no_inputs"]

_TOKEN_NAMES = ("ids", "idx", "tokens", "token", "src_tokens", "text")


def no_inputs(module: Any, source: str) -> InputError:
    """Build the error for a model of which nothing says what it takes."""
    lines = " ".join(f"--input {line}" for line in _guess(module)) or "--input x:float32[batch,seq,64]"
    return InputError(
        f"{source} does not say which inputs it takes. Its signature: forward{_signature(module)}",
        hint=f"Name its inputs, for example {lines} (names are dynamic axes, numbers are fixed); or give "
        "--inputs FILE.npz; from Python: args=, kwargs= and dynamic_shapes=.",
    )


def check_names(module: Any, given: Iterable[str], *, source: str, count: int = 0) -> None:
    """Check that ``forward`` takes exactly these names, besides ``count`` positional inputs.

    Raises:
        InputError: A name it does not take, or a required one that is not there.
    """
    parameters = parameters_of(module)
    if not parameters:
        return
    given = list(given)
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    unknown = [name for name in given if name not in named and not free]
    if unknown:
        close = difflib.get_close_matches(unknown[0], named, n=1)
        hint = f"Did you mean {close[0]}?" if close else f"It takes: {', '.join(named) or 'nothing by name'}."
        raise InputError(f"forward of {source} has no parameter {', '.join(unknown)}", hint=hint)
    missing = [
        name for name in named[count:] if parameters[name].default is inspect.Parameter.empty and name not in given
    ]
    if missing:
        raise InputError(
            f"forward of {source} also needs {', '.join(missing)}. Its signature: forward{_signature(module)}",
            hint=f"Add {' '.join(f'--input {_line(module, name, False)}' for name in missing)} with its real shape.",
        )


def _signature(module: Any) -> str:
    try:
        text = str(inspect.signature(module.forward))
    except (TypeError, ValueError):
        return "(...)"
    return text if len(text) <= 400 else text[:400] + " ...)"


def _guess(module: Any) -> list[str]:
    required = [
        name
        for name, p in parameters_of(module).items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    return [_line(module, name, first=i == 0) for i, name in enumerate(required)]


def _line(module: Any, name: str, first: bool) -> str:
    """A plausible spec: by the name, else by the first layer that has weights."""
    from torch import nn

    if "mask" in name:
        return f"{name}:bool[batch,seq]"
    layer = next((m for m in module.modules() if next(m.parameters(recurse=False), None) is not None), None)
    if any(word in _TOKEN_NAMES for word in name.split("_")) or (first and isinstance(layer, nn.Embedding)):
        return f"{name}:int64[batch,seq]"
    if isinstance(layer, nn.Conv2d):
        return f"{name}:float32[batch,{layer.in_channels},224,224]"
    if isinstance(layer, nn.Conv1d):
        return f"{name}:float32[batch,{layer.in_channels},length]"
    width = getattr(layer, "in_features", None) or getattr(layer, "embed_dim", None) or 64
    return f"{name}:float32[batch,seq,{width}]"
