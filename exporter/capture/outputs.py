"""Flattening what a model returns into named tensors, dropping caches and what is no tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch

__all__ = ["Outputs", "flatten_outputs"]

#: Fields that hold a key-value cache in the output structures of model libraries.
_CACHE_FIELDS: Final = frozenset({"past_key_values", "past_key_value", "cache_params", "past_buckets_states", "mems"})


@dataclasses.dataclass
class Outputs:
    """A forward hook that turns a model's result into a flat tuple of tensors and remembers their names.

    Attributes:
        names: Names of the tensors, in order, of the latest call.
        dropped: Sentences about what was left out, of the latest call.
    """

    names: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __call__(self, module: torch.nn.Module, args: Any, result: Any) -> tuple[torch.Tensor, ...]:
        """The hook itself: see ``torch.nn.Module.register_forward_hook``."""
        named, self.dropped = flatten_outputs(result)
        self.names = tuple(named)
        return tuple(named.values())


def flatten_outputs(result: Any) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Name the tensors of a result: "field", "field.0", or "output_0" where the structure has no names.

    Returns:
        The tensors by name in order, and one sentence for each part that was dropped.
    """
    dropped: list[str] = []
    found: dict[str, torch.Tensor] = {}
    unnamed = 0
    for path, leaf in _walk(result, (), dropped):
        if path and isinstance(path[0], str):
            name = ".".join(str(part) for part in path)
        else:
            name, unnamed = f"output_{unnamed}", unnamed + 1
        found[_unused(name, found)] = leaf
    return found, tuple(dropped)


def _unused(name: str, taken: Mapping[str, object]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    return candidate


def _walk(item: Any, path: tuple[str | int, ...], dropped: list[str]) -> Iterator[tuple[tuple, torch.Tensor]]:
    if isinstance(item, torch.Tensor):
        yield path, item
        return
    if item is None:
        return
    children = _children(item)
    if children is None or _is_cache(item, path):
        dropped.append(_sentence(item, path))
        return
    for key, child in children:
        yield from _walk(child, (*path, key), dropped)


def _children(item: Any) -> list[tuple[str | int, Any]] | None:
    if isinstance(item, Mapping):
        return [(str(key), child) for key, child in item.items()]
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return list(zip(item._fields, item, strict=True))
    if isinstance(item, (tuple, list)):
        return list(enumerate(item))
    if dataclasses.is_dataclass(item) and not isinstance(item, type) and not _has_cache_methods(item):
        return [(f.name, getattr(item, f.name)) for f in dataclasses.fields(item)]
    return None


def _has_cache_methods(item: Any) -> bool:
    return hasattr(item, "get_seq_length") or (hasattr(item, "update") and hasattr(item, "reset"))


def _is_cache(item: Any, path: tuple[str | int, ...]) -> bool:
    return _has_cache_methods(item) or (bool(path) and path[-1] in _CACHE_FIELDS)


def _sentence(item: Any, path: tuple[str | int, ...]) -> str:
    name = ".".join(str(part) for part in path) or "output"
    if _is_cache(item, path):
        return f"Output '{name}' is a key-value cache ({type(item).__name__}) and was dropped from the graph."
    return f"Output '{name}' is a {type(item).__name__}, not a tensor, and was dropped from the graph."
