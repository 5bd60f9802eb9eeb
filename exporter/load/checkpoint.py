"""Find the model in what a file held: a module, a state_dict, or either somewhere inside a training checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import InputError
from .opened import Examples
from .pickled import Standin

__all__ = ["Found", "find_examples", "find_model", "find_state"]

#: Where training scripts put the model, best first. "ema" is a choice the user makes, not we.
_MODEL_KEYS = (
    "model",
    "state_dict",
    "model_state_dict",
    "module",
    "net",
    "network",
    "generator",
    "weights",
    "params",
)
_NOT_THE_MODEL = ("optim", "scheduler", "scaler", "ema", "rng", "loss", "callback", "loop")
_ARGS_KEYS = ("example_inputs", "inputs", "example_args", "args", "sample_inputs")
_KWARGS_KEYS = ("example_kwargs", "kwargs")
_AXES_KEYS = ("dynamic_axes", "dynamic_shapes")
_MAX_DEPTH = 6
_MAX_MODULES = 1_000_000


@dataclass(frozen=True)
class Found:
    """A state_dict or module inside a loaded object.

    Attributes:
        value: The ``nn.Module``, or the mapping of names to tensors.
        key: Where it was, as "model.state_dict"; "" for the object itself.
        others: Keys that hold another set of weights (say "ema").
    """

    value: Any
    key: str = ""
    others: tuple[str, ...] = ()


def find_model(loaded: Any) -> Found | None:
    """Return the ``nn.Module`` in a loaded object, or None."""
    from torch import nn

    return _best(loaded, lambda value: value if isinstance(value, nn.Module) else None)


def find_state(loaded: Any) -> Found | None:
    """Return the state_dict in a loaded object (a stood-in module counts: its tensors are collected), or None."""
    return _best(loaded, _as_state)


def find_examples(loaded: Any) -> Examples | None:
    """Return the example inputs that a checkpoint dict carries ("inputs", "example_inputs", ...), or None."""
    if not isinstance(loaded, Mapping):
        return None
    given = next((loaded[key] for key in _ARGS_KEYS if loaded.get(key) is not None), None)
    named = next((loaded[key] for key in _KWARGS_KEYS if isinstance(loaded.get(key), Mapping)), {})
    if not _holds_tensor(given) and not _holds_tensor(named):
        return None
    args: tuple[Any, ...] = ()
    if isinstance(given, Mapping):
        named = {**given, **named}
    elif isinstance(given, list | tuple):
        args = tuple(given)
    elif given is not None:
        args = (given,)
    axes = next((loaded[key] for key in _AXES_KEYS if isinstance(loaded.get(key), Mapping)), {})
    return Examples(args, dict(named), _axes(axes))


def _axes(given: Mapping[Any, Any]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for name, axes in given.items():
        pairs = axes.items() if isinstance(axes, Mapping) else []
        named = {axis: dim for axis, dim in pairs if isinstance(axis, int) and isinstance(dim, str)}
        if named:
            found[str(name)] = named
    return found


def _holds_tensor(value: Any) -> bool:
    from torch import Tensor

    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(isinstance(item, Tensor) for item in value.values())
    return isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value)


def _best(loaded: Any, accept: Any) -> Found | None:
    """Breadth first, so that the outermost match wins; among equals the usual names, in their order."""
    level: list[tuple[str, Any]] = [("", loaded)]
    for _ in range(_MAX_DEPTH):
        hits = [(key, value) for key, item in level if (value := accept(item)) is not None]
        if hits:
            hits.sort(key=lambda hit: _rank(hit[0]))
            return Found(hits[0][1], hits[0][0], tuple(key for key, _ in hits[1:]))
        level = list(_children(level))
    return None


def _children(level: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    for key, item in level:
        if not isinstance(item, Mapping) or len(item) > 10_000:
            continue
        for name, value in item.items():
            inner = f"{key}.{name}" if key else str(name)
            inputs = not key and name in (*_ARGS_KEYS, *_KWARGS_KEYS)
            if (not inputs and isinstance(value, Mapping | Standin)) or _is_module(value):
                yield inner, value


def _is_module(value: Any) -> bool:
    from torch import nn

    return isinstance(value, nn.Module)


def _rank(key: str) -> tuple[int, int]:
    last = key.rsplit(".", 1)[-1]
    doubtful = int(any(word in key.lower() for word in _NOT_THE_MODEL))
    return doubtful, _MODEL_KEYS.index(last) if last in _MODEL_KEYS else len(_MODEL_KEYS)


def _as_state(value: Any) -> dict[str, Any] | None:
    from torch import Tensor, nn

    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if isinstance(value, Standin):
        return _state_of_standin(value)
    if not isinstance(value, Mapping) or not value:
        return None
    tensors = {str(name): item for name, item in value.items() if isinstance(item, Tensor)}
    # A state_dict may carry a few "_extra_state" entries; a dict of settings carries the odd tensor.
    return tensors if tensors and 2 * len(tensors) >= len(value) and _flat(value) else None


def _flat(value: Mapping[Any, Any]) -> bool:
    return not any(isinstance(item, Mapping | Standin) and item for item in value.values())


def _state_of_standin(root: Standin) -> dict[str, Any] | None:
    """Collect parameters and persistent buffers of a stood-in module tree, as ``Module.state_dict`` would."""
    from torch import Tensor

    found: dict[str, Any] = {}
    pending: list[tuple[str, Any]] = [("", root)]
    seen = 0
    while pending:
        prefix, item = pending.pop()
        seen += 1
        if seen > _MAX_MODULES or len(prefix) > 4096:
            raise InputError("the file nests modules without end", hint="Save the state_dict of the model anew.")
        state = item.state if isinstance(item, Standin) else None
        if not isinstance(state, Mapping) or "_modules" not in state:
            continue
        transient = state.get("_non_persistent_buffers_set") or ()
        for group in ("_parameters", "_buffers"):
            for name, tensor in dict(state.get(group) or {}).items():
                if isinstance(tensor, Tensor) and not (group == "_buffers" and name in transient):
                    found[f"{prefix}{name}"] = tensor
        children = dict(state["_modules"] or {}).items()
        pending.extend((f"{prefix}{name}.", child) for name, child in reversed(list(children)))
    return found or None
