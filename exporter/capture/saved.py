"""Programs that were traced before (``.pt2``): taken as they are, with names for inputs, outputs and axes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..loaded import Loaded
from .captured import Captured
from .outputs import flatten_outputs
from .trace import fixed_size, user_tensors

__all__ = ["capture_saved"]


def capture_saved(loaded: Loaded) -> Captured:
    """Name the inputs, outputs and axes of a saved program; the caller's program is not changed."""
    program = _copied(loaded.module)
    names = _input_names(program)
    outputs, dropped = _output_names(program)
    axis_names, axes = _axes(program, names, loaded.dynamic_shapes)
    return Captured(
        program=program,
        input_names=tuple(names),
        output_names=outputs,
        dynamic_axes=axes,
        axis_names=axis_names,
        notes=dropped,
    )


def _copied(program: ExportedProgram) -> ExportedProgram:
    """The same program with a graph and a signature of its own; weights are shared."""
    graph_module = copy.deepcopy(program.graph_module)
    return ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _input_names(program: ExportedProgram) -> list[str]:
    tensors = {n.name for n in program.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)}
    return [name for name in program.graph_signature.user_inputs if name in tensors]


def _output_names(program: ExportedProgram) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names by the structure the program returns; "output_0", ... when its class is unknown here."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes}
    returned = [values.get(name) if isinstance(name, str) else name for name in _user_outputs(program)]
    try:
        found, dropped = flatten_outputs(pytree.tree_unflatten(returned, program.call_spec.out_spec))
    except Exception:  # a class that was registered only where the program was saved
        found, dropped = flatten_outputs(tuple(returned))
    tensors = [value for value in returned if isinstance(value, torch.Tensor)]
    if len(found) != len(tensors):
        return tuple(f"output_{index}" for index in range(len(tensors))), ()
    return tuple(found), dropped


def _user_outputs(program: ExportedProgram) -> tuple[Any, ...]:
    return tuple(program.graph_signature.user_outputs)


def _axes(
    program: ExportedProgram, names: list[str], dynamic_shapes: Any
) -> tuple[dict[str, str], dict[str, dict[int, str]]]:
    symbols: dict[str, str] = {}
    axes: dict[str, dict[int, str]] = {}
    declared = dynamic_shapes if isinstance(dynamic_shapes, dict) else {}
    for name, value in zip(names, user_tensors(program), strict=True):
        spec = declared.get(name)
        for at, size in enumerate(value.shape):
            if fixed_size(size) is not None:
                continue
            given = spec.get(at) if isinstance(spec, dict) else None
            label = given if isinstance(given, str) else getattr(given, "__name__", None)
            axes.setdefault(name, {})[at] = symbols.setdefault(str(size.node.expr), label or f"{name}_{at}")
    return symbols, axes
