"""Settle the example inputs of a model, from the best source there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ..loaded import Kind
from .config import derive_specs, left_out, limits_of
from .dims import by_parameter, grow, shapes_for, with_dims
from .fields import parameters_of
from .file import read_inputs
from .given import Chosen, Given, to_cpu
from .guidance import check_names, no_inputs
from .sizes import SizeChooser, choose_sizes, numbers_of
from .spec import InputSpec, parse_specs
from .traced import for_program, for_script
from .trial import does_run, sizes_that_run
from .values import fill_tensors
from .vocabulary import vocabulary_of

__all__ = ["choose_inputs"]


def choose_inputs(module: Any, kind: Kind, given: Given, *, source: str) -> Chosen:
    """Choose example inputs: the caller's, then a file's, then ``--input``, then the model's own.

    Args:
        module: The prepared model.
        kind: What it is.
        given: What the caller and the file said.
        source: Name of the model, for messages.

    Raises:
        InputError: Contradicting or malformed inputs, or a model that does not say what it takes.
    """
    specs = parse_specs(given.specs)
    if (given.args or given.kwargs) and (specs or given.file is not None):
        raise InputError("inputs are given twice: as arguments and as text or file", hint="Give them once.")
    if kind == "program":
        return for_program(module, given, specs, source)
    if kind == "torchscript":
        return for_script(module, given, specs, source)
    chosen = _for_module(module, given, specs, source)
    return _with_fixed(module, chosen, given.fixed)


def _for_module(module: Any, given: Given, specs: tuple[InputSpec, ...], source: str) -> Chosen:
    if given.args or given.kwargs:
        return _from_caller(module, given, source)
    if given.file is not None:
        args, kwargs = read_inputs(Path(given.file))
        return _from_values(module, args, kwargs, specs, given.dynamic_shapes, {}, source)
    if specs:
        check_names(module, [spec.name for spec in specs], source=source)
        return _from_written(module, specs, given)
    if given.stored is not None:
        stored = given.stored
        return _from_values(
            module, stored.args, dict(stored.kwargs), (), given.dynamic_shapes, dict(stored.axes), source
        )
    derived = derive_specs(module)
    if derived is not None:
        chosen = _from_specs(module, derived, given.dynamic_shapes)
        told = f"inputs from the config: {' '.join(str(spec) for spec in derived)}"
        missing = left_out(module, derived)
        told += f"; without {', '.join(missing)}, which forward does not require" if missing else ""
        return Chosen(chosen.args, chosen.kwargs, chosen.dynamic_shapes, (told, *chosen.notes))
    declared = getattr(module, "example_input_array", None)
    if declared is not None:
        kwargs = dict(declared) if isinstance(declared, Mapping) else {}
        args = () if kwargs else tuple(declared) if isinstance(declared, list | tuple) else (declared,)
        return _from_values(module, args, kwargs, (), given.dynamic_shapes, {}, source)
    raise no_inputs(module, source)


def _from_caller(module: Any, given: Given, source: str) -> Chosen:
    args, kwargs = to_cpu(given.args), {name: to_cpu(value) for name, value in given.kwargs.items()}
    try:
        by_parameter(module, args, kwargs)
    except TypeError as e:
        raise InputError(
            f"forward of {source} does not take these inputs: {e}",
            hint="Pass what you pass to the module itself.",
        ) from e
    return _grown(module, args, kwargs, given.dynamic_shapes, ())


def _grown(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, notes: tuple[str, ...]) -> Chosen:
    shapes = with_dims(shapes)
    if shapes is None:
        fixed = "every axis is fixed at its example's size; name dynamic ones to keep them"
        return Chosen(args, kwargs, None, (*notes, fixed))
    if not isinstance(shapes, Mapping | list | tuple):
        return Chosen(args, kwargs, shapes, notes)
    chooser = SizeChooser(numbers_of(module))
    args, kwargs, grown = grow(module, args, kwargs, shapes, lambda: chooser.pick(at_least=2))
    if grown:
        notes = (
            *notes,
            f"repeated {', '.join(grown)} along dynamic axes of size 1, which torch would fix at 1",
        )
    return Chosen(args, kwargs, shapes, notes)


def _from_written(module: Any, specs: tuple[InputSpec, ...], given: Given) -> Chosen:
    """Inputs as the user wrote them, whose names of axes need not tell how long they must be."""
    vocabulary = vocabulary_of(module)

    def runs(sizes: dict[str, int]) -> bool:
        args, kwargs = _positional_only(module, fill_tensors(specs, sizes, vocabulary))
        chosen = _with_fixed(module, Chosen(args, kwargs), given.fixed)
        return does_run(module, chosen.args, chosen.kwargs)

    sizes, notes = sizes_that_run(specs, numbers_of(module), limits_of(module), runs)
    chosen = _from_specs(module, specs, given.dynamic_shapes, sizes)
    return replace(chosen, notes=(*notes, *chosen.notes))


def _from_specs(
    module: Any, specs: tuple[InputSpec, ...], shapes: Any | None, sizes: dict[str, int] | None = None
) -> Chosen:
    sizes = sizes or choose_sizes(specs, numbers_of(module), limits_of(module))
    kwargs = fill_tensors(specs, sizes, vocabulary_of(module))
    args, kwargs = _positional_only(module, kwargs)
    if shapes is not None:
        return _grown(module, args, kwargs, shapes, ())
    axes = {spec.name: spec.dynamic for spec in specs}
    return Chosen(args, kwargs, shapes_for(module, args, kwargs, axes))


def _positional_only(module: Any, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parameters written before ``/`` cannot be passed by name."""
    first = [name for name, p in parameters_of(module).items() if p.kind is p.POSITIONAL_ONLY and name in kwargs]
    return tuple(kwargs[name] for name in first), {k: v for k, v in kwargs.items() if k not in first}


def _from_values(
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    specs: tuple[InputSpec, ...],
    shapes: Any | None,
    axes: dict[str, dict[int, str]],
    source: str,
) -> Chosen:
    """Values are given, axes may be named by specs, by the file, or by what the config says of such inputs."""
    check_names(module, kwargs, source=source, count=len(args))
    try:
        named = by_parameter(module, args, kwargs)
    except TypeError as e:
        raise InputError(f"forward of {source} does not take these inputs: {e}", hint="Leave out the surplus.") from e
    values, notes = _fitted(module, named, specs)
    args = tuple(values[name] for name in list(values)[: len(args)]) if args else ()
    kwargs = {name: values.get(name, value) for name, value in kwargs.items()}
    if shapes is None:
        known = specs or derive_specs(module) or ()
        axes = axes or {s.name: s.dynamic for s in known if getattr(values.get(s.name), "ndim", -1) == len(s.dims)}
        shapes = shapes_for(module, args, kwargs, axes)
    return _grown(module, args, kwargs, shapes, notes)


def _fitted(module: Any, named: dict[str, Any], specs: tuple[InputSpec, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Check values against specs, and bring numpy's float64 to the model's own floating dtype."""
    import torch

    wanted = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    by_name = {spec.name: spec for spec in specs}
    unknown = [name for name in by_name if name not in named]
    if unknown:
        raise InputError(
            f"--input names {', '.join(unknown)}, which the input file does not hold", hint="Add it there."
        )
    values, notes = dict(named), []
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            continue
        target = getattr(torch, by_name[name].dtype) if name in by_name else value.dtype
        if name not in by_name and value.dtype == torch.float64 != wanted:
            target = wanted
        if target != value.dtype:
            values[name] = value.to(target)
            notes.append(f"{name} converted from {value.dtype} to {target}".replace("torch.", ""))
        if name in by_name:
            _check_shape(by_name[name], tuple(value.shape))
    return values, tuple(notes)


def _check_shape(spec: InputSpec, shape: tuple[int, ...]) -> None:
    fits = len(shape) == len(spec.dims) and all(
        isinstance(dim, str) or dim == size for dim, size in zip(spec.dims, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"--input {spec} does not fit the value in the input file, of shape {list(shape)}",
            hint="Write one entry per axis; a number must equal the size of the value.",
        )


def _with_fixed(module: Any, chosen: Chosen, fixed: Mapping[str, Any]) -> Chosen:
    """Add baked-in arguments, and take back a caller's ``use_cache=True``: its output is no tensor."""
    kwargs, notes = dict(chosen.kwargs), chosen.notes
    shapes = chosen.dynamic_shapes
    if kwargs.get("use_cache"):
        kwargs["use_cache"] = False
        notes = (*notes, "use_cache=True taken back: the key-value cache is no output of the exported graph")
    for name, value in fixed.items():
        if name not in kwargs:
            kwargs[name] = value
            shapes = {**shapes, name: None} if isinstance(shapes, Mapping) else shapes
    return Chosen(chosen.args, kwargs, shapes, notes)
