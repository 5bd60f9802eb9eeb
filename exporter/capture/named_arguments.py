"""Gives a ``forward(*args, **kwargs)`` a name for each argument while it is traced.

torch.export nests the dynamic shapes of such arguments one level deeper than those of the others, and finds no place
for the ones of ``**kwargs`` at all. A signature that names every argument of the call keeps one form for all of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["named_arguments"]

_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@contextmanager
def named_arguments(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Let ``inspect.signature(module.forward)`` name each argument of the call, if some have no name of their own."""
    signature = inspect.signature(module.forward)
    if not _gathers(signature, args, kwargs):
        yield
        return
    forward, own = module.forward, module.__dict__.get("forward")

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named.__signature__ = _explicit(signature, args, kwargs)  # type: ignore[attr-defined]
    module.forward = named
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def _gathers(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the call hands something to ``*args`` or ``**kwargs``."""
    bound = signature.bind(*args, **kwargs).arguments
    return any(parameter.kind in _GATHERING for name, parameter in signature.parameters.items() if name in bound)


def _explicit(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.Signature:
    """One positional parameter for each of ``args``, one by keyword for each of ``kwargs``."""
    parameters = list(signature.parameters.values())
    plain = [p.name for p in parameters if p.kind not in _GATHERING]
    rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), "")
    order = [p.name for p in parameters]
    before = order.index(rest) if rest else len(order)
    taken = {*plain, *kwargs}
    named = []
    for index in range(len(args)):
        name = order[index] if index < before else f"{rest}_{index - before}"
        while index >= before and name in taken:
            name += "_"
        named.append(inspect.Parameter(name, inspect.Parameter.POSITIONAL_ONLY))
    words = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs]
    return inspect.Signature([*named, *words])
