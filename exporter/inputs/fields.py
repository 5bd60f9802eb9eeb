"""Look fields up in the config that a transformers model carries, without knowing the model."""

from __future__ import annotations

from typing import Any

__all__ = ["field_of", "parameters_of"]


def field_of(module: Any, name: str, inside: tuple[str, ...] = ()) -> Any | None:
    """Return ``config.<name>``, or that of a sub-config, or None.

    Args:
        module: A module; one without ``config`` has no fields.
        name: Field name, as "image_size".
        inside: Sub-configs to search when the config itself has no such field, in order.
    """
    config = getattr(module, "config", None)
    for holder in (config, *(getattr(config, part, None) for part in inside)):
        value = holder.get(name) if isinstance(holder, dict) else getattr(holder, name, None)
        if value is not None:
            return value
    return None


def parameters_of(module: Any) -> dict[str, Any]:
    """Parameters of ``forward`` by name (``inspect.Parameter``); empty where there is no signature."""
    import inspect

    try:
        return dict(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return {}
