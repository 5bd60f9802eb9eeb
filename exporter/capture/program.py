"""``capture``: from a loaded model to a program with named inputs, outputs and axes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram

from ..loaded import Loaded
from .captured import Captured
from .inputs import Examples, examples_of
from .outputs import Outputs
from .quiet import quiet
from .surgery import drop_empty_concatenations, keep_attention_whole
from .trace import trace

__all__ = ["capture"]


def capture(loaded: Loaded, *, keep_attention: bool = True) -> Captured:
    """Trace a model with ``torch.export``, every attention call kept as one node.

    Args:
        loaded: The model with its example inputs and dynamic axes.
        keep_attention: Replace scaled-dot-product attention by ``deployml::attention``; without it torch
            decomposes the calls.

    Returns:
        The program with the names of its inputs, outputs and axes.

    Raises:
        InputError: the example inputs do not fit the model.
        UnsupportedError: torch cannot trace the model, or a declared dynamic axis was lost.
    """
    with quiet():
        examples = examples_of(loaded, loaded.module.forward)
        outputs = Outputs()
        handle = loaded.module.register_forward_hook(outputs)
        try:
            program = trace(loaded.module, examples)
        finally:
            handle.remove()
        drop_empty_concatenations(program)
        calls = keep_attention_whole(program) if keep_attention else 0
    names, axes = name_axes(program, examples)
    return Captured(
        program=program,
        input_names=tuple(leaf.name for leaf in examples.tensors),
        output_names=outputs.names,
        dynamic_axes=axes,
        axis_names=names,
        attention_calls=calls,
        notes=outputs.dropped,
    )


def name_axes(program: ExportedProgram, examples: Examples) -> tuple[dict[str, str], dict[str, dict[int, str]]]:
    """Name the symbols of a program after the declared axes.

    Returns:
        torch's symbol -> name, and input -> axis -> name.
    """
    names: dict[str, str] = {}
    axes: dict[str, dict[int, str]] = {}
    for leaf, value in zip(examples.tensors, user_tensors(program), strict=True):
        for at, size in enumerate(value.shape):
            if isinstance(size, int):
                continue
            symbol = str(size.node.expr)
            declared = leaf.axes.get(at)
            fallback = f"{leaf.name}_{at}"
            name = names.setdefault(symbol, (declared.name if declared else "") or fallback)
            axes.setdefault(leaf.name, {})[at] = name
    return names, axes


def user_tensors(program: ExportedProgram) -> list[torch.Tensor]:
    """The traced (fake) tensors of a program's user inputs, in order."""
    wanted = set(program.graph_signature.user_inputs)
    found: Mapping[str, Any] = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    return [value for name, value in found.items() if name in wanted and isinstance(value, torch.Tensor)]


