"""Example inputs of models that are no Python modules any more: torch.export programs and TorchScript."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .dims import shapes_for, with_dims
from .file import read_inputs
from .given import Chosen, Given, to_cpu
from .program import program_examples
from .sizes import Limits, choose_sizes, numbers_of
from .spec import InputSpec
from .values import fill_tensors
from .vocabulary import vocabulary_of

__all__ = ["for_program", "for_script", "parameter_names"]

_LIMITS: Limits = {"batch": (3, None), "seq": (7, None)}


def parameter_names(module: Any) -> tuple[str, ...]:
    """Names of the parameters of a ScriptModule's ``forward``, in order, without ``self``."""
    schema = module.forward.schema if hasattr(module.forward, "schema") else module._c._get_method("forward").schema
    return tuple(argument.name for argument in schema.arguments if argument.name != "self")


def for_program(program: Any, given: Given, specs: tuple[InputSpec, ...], source: str) -> Chosen:
    """Settle the inputs of an ``ExportedProgram``: its axes were settled when it was traced, only values are open."""
    if given.args or given.kwargs:
        return Chosen(to_cpu(given.args), {k: to_cpu(v) for k, v in given.kwargs.items()})
    notes: tuple[str, ...] = ()
    values: dict[str, Any] = {}
    if given.file is not None:
        args, kwargs = read_inputs(Path(given.file))
        values = {**dict(zip(map(str, program.graph_signature.user_inputs), args, strict=False)), **kwargs}
    elif specs:
        sizes = choose_sizes(specs, set(), _LIMITS)
        values = fill_tensors(specs, sizes, vocabulary_of(program.module()))
        notes = ("a .pt2 program keeps the dynamic axes it was exported with; --input only shapes its examples",)
    args, kwargs = program_examples(program, values, source=source)
    return Chosen(args, kwargs, None, notes)


def for_script(module: Any, given: Given, specs: tuple[InputSpec, ...], source: str) -> Chosen:
    """Settle the inputs of a ``ScriptModule``: it has a schema and no Python signature, so inputs go by position."""
    names = parameter_names(module)
    axes = {spec.name: spec.dynamic for spec in specs}
    if given.args or given.kwargs or given.file is not None:
        args, kwargs = read_inputs(Path(given.file)) if given.file is not None else (given.args, dict(given.kwargs))
    elif specs:
        kwargs = fill_tensors(specs, choose_sizes(specs, numbers_of(module), _LIMITS), vocabulary_of(module))
        args = ()
    else:
        listed = ", ".join(names)
        raise InputError(
            f"{source} is TorchScript, which does not say the shapes of its inputs ({listed})",
            hint=f"Give one --input per input, for example --input {names[0] if names else 'x'}:int64[batch,seq].",
        )
    unknown = [name for name in kwargs if name not in names]
    if unknown or len(args) + len(kwargs) > len(names):
        raise InputError(
            f"forward of {source} has no parameter {', '.join(unknown) or len(names)}",
            hint=f"Its parameters: {', '.join(names)}.",
        )
    ordered = {**dict(zip(names, args, strict=False)), **kwargs}
    values = tuple(to_cpu(ordered[name]) for name in names if name in ordered)
    if [name for name in names if name in ordered] != list(names[: len(values)]):
        raise InputError(
            f"{source}: inputs leave a gap in forward({', '.join(names)})", hint="Give the leading ones too."
        )
    shapes = with_dims(given.dynamic_shapes)
    if isinstance(shapes, Mapping):
        shapes = tuple(shapes.get(name) for name in names[: len(values)])
    if shapes is None:
        shapes = shapes_for(module, values, {}, axes, positional=names)
    return Chosen(values, {}, shapes)
