"""What loading yields: a model ready to be traced, with example inputs and dynamic axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

__all__ = ["Kind", "Loaded"]

#: What :attr:`Loaded.module` is.
Kind = Literal["module", "program", "torchscript"]


@dataclass(frozen=True)
class Loaded:
    """A model on the CPU in ``eval()`` mode, with everything ``torch.export.export`` needs beside it.

    A module handed over by a Python caller is changed while it is exported (training mode off, cache off);
    leave the ``with`` block, or call :meth:`restore`, to put it back as it was.

    Attributes:
        module: The model itself, of the type that ``kind`` names.
        kind: ``module`` (``torch.nn.Module``), ``program`` (``torch.export.ExportedProgram``) or
            ``torchscript`` (``torch.jit.ScriptModule``).
        name: Short name of the model, no folder and no ending.
        args: Positional example inputs; tensors, and plain values that are baked in.
        kwargs: Example inputs by name of a parameter of ``forward``; tensors and baked-in values.
        dynamic_shapes: What ``torch.export.export`` takes under that name; None means every axis is fixed.
        notes: Sentences to show to the user: what was assumed, switched off or chosen.
        source: Name of the source without its folder.
        undo: Actions that put a caller's module back, run last first by :meth:`restore`.
    """

    module: Any
    kind: Kind
    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any | None = None
    notes: tuple[str, ...] = ()
    source: str = ""
    undo: tuple[Callable[[], None], ...] = field(default=(), repr=False, compare=False)

    def restore(self) -> None:
        """Put a caller's module back as it was before loading. Calling it twice does no harm."""
        for action in reversed(self.undo):
            action()

    def __enter__(self) -> Loaded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
