"""What is known about a model's inputs, and what is chosen in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Chosen", "Given", "to_cpu"]


@dataclass(frozen=True)
class Given:
    """What is known about the inputs before any is chosen.

    Attributes:
        args: The caller's positional inputs.
        kwargs: The caller's named inputs.
        dynamic_shapes: The caller's dynamic axes.
        specs: ``NAME:DTYPE[DIMS]`` texts.
        file: File of example inputs, or None.
        stored: Examples that came with the model (``args``, ``kwargs``, ``axes``), or None.
        fixed: Further arguments for ``forward``, baked in (``use_cache=False``).
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any | None = None
    specs: tuple[str, ...] = ()
    file: str | Path | None = None
    stored: Any | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """Example inputs.

    Attributes:
        args: Positional inputs.
        kwargs: Named inputs.
        dynamic_shapes: As ``torch.export.export`` takes it; None means every axis is fixed.
        notes: Sentences for the user.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any | None = None
    notes: tuple[str, ...] = ()


def to_cpu(value: Any) -> Any:
    """Detach every tensor of a nested value and bring it to the CPU."""
    from torch import Tensor
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, value)
