"""What capturing yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["Captured"]


@dataclass(frozen=True)
class Captured:
    """A traced model: the program, and the names its ONNX graph will carry.

    Attributes:
        program: The ``torch.export`` program; each scaled-dot-product attention is one ``deployml::attention``.
        input_names: Names of the tensor inputs in order: ``forward``'s parameters, nested ones as "outer.key".
        output_names: Names of the outputs in order: fields of the returned structure, else "output_0", ...
        dynamic_axes: Input name -> {axis: axis name}, for the axes that vary.
        axis_names: torch's symbol ("s53") -> axis name ("sequence").
        attention_calls: How many attention calls the program holds.
        notes: Sentences to show to the user.
    """

    program: ExportedProgram
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    axis_names: Mapping[str, str] = field(default_factory=dict)
    attention_calls: int = 0
    notes: tuple[str, ...] = ()

    def finished(self, attention_calls: int) -> Captured:
        """The same with the number of attention calls, and no output named like an input."""
        taken = set(self.input_names)
        names = tuple(f"{name}_output" if name in taken else name for name in self.output_names)
        return replace(self, attention_calls=attention_calls, output_names=names)
