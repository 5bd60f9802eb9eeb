"""What one loader hands on: the model as read, before it is prepared and given inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..loaded import Kind

__all__ = ["Examples", "Opened", "Trust"]


@dataclass(frozen=True)
class Trust:
    """How far the user trusts a pickled file.

    Attributes:
        pickle: Run whatever the pickle asks for (``--trust-pickle``).
        globals: Dotted names that may be looked up and called (``--allow-global``).
    """

    pickle: bool = False
    globals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Examples:
    """Example inputs that came with a model.

    Attributes:
        args: Positional inputs.
        kwargs: Inputs by name.
        axes: Dynamic axes as ``{input name: {axis: dimension name}}``; empty means all fixed.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """A model as it was read from its source.

    Attributes:
        module: ``torch.nn.Module``, ``torch.export.ExportedProgram`` or ``torch.jit.ScriptModule``.
        kind: Which of the three.
        fresh: True where the module was built by a factory and its mode says nothing about the user's wish.
        examples: Example inputs found beside the model, or None.
        notes: Sentences to show to the user.
    """

    module: Any
    kind: Kind = "module"
    fresh: bool = False
    examples: Examples | None = None
    notes: tuple[str, ...] = ()
