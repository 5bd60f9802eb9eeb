"""Settle the example inputs of a model, from the best source there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ..loaded import Kind
from .config import Limits, derive_specs, limits_of
from .dims import by_parameter, grow, shapes_for, with_dims
from .fields import parameters_of
from .file import read_inputs
from .guidance import check_names, no_inputs
from .program import program_examples
from .sizes import SizeChooser, numbers_of
from .spec import InputSpec, parse_specs
from .values import fill_tensors
from .vocabulary import vocabulary_of

__all__ = ["Chosen", "Given", "choose_inputs"]

_LENGTHS = ("seq", "len", "time", "token", "pos", "ctx")


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
        return _for_program(module, given, specs, source)
    if kind == "torchscript":
        return _for_script(module, given, specs, source)
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
        return _from_specs(module, specs, given.dynamic_shapes)
    if given.stored is not None:
        stored = given.stored
        return _from_values(
            module, stored.args, dict(stored.kwargs), (), given.dynamic_shapes, dict(stored.axes), source
        )
    derived = derive_specs(module)
    if derived is not None:
        chosen = _from_specs(module, derived, given.dynamic_shapes)
        told = f"inputs from the config: {' '.join(str(spec) for spec in derived)}"
        return Chosen(chosen.args, chosen.kwargs, chosen.dynamic_shapes, (told, *chosen.notes))
    declared = getattr(module, "example_input_array", None)
    if declared is not None:
        kwargs = dict(declared) if isinstance(declared, Mapping) else {}
        args = () if kwargs else tuple(declared) if isinstance(declared, list | tuple) else (declared,)
        return _from_values(module, args, kwargs, (), given.dynamic_shapes, {}, source)
    if not any(p.default is p.empty for p in parameters_of(module).values()) and parameters_of(module):
        raise no_inputs(module, source)
    raise no_inputs(module, source)


def _from_caller(module: Any, given: Given, source: str) -> Chosen:
    args, kwargs = _to_cpu(given.args), {name: _to_cpu(value) for name, value in given.kwargs.items()}
    try:
        by_parameter(module, args, kwargs)
    except TypeError as e:
        raise InputError(
            f"forward of {source} does not take these inputs: {e}",
            hint="Pass what you pass to the module itself.",
        ) from e
    return _grown(module, args, kwargs, given.dynamic_shapes, ())


def _grown(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, notes: tuple[str, ...]
) -> Chosen:
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


def _from_specs(module: Any, specs: tuple[InputSpec, ...], shapes: Any | None) -> Chosen:
    sizes = _choose_sizes(specs, numbers_of(module), limits_of(module))
    kwargs = fill_tensors(specs, sizes, vocabulary_of(module))
    args, kwargs = _positional_only(module, kwargs)
    if shapes is not None:
        return _grown(module, args, kwargs, shapes, ())
    axes = {spec.name: spec.dynamic for spec in specs}
    return Chosen(args, kwargs, shapes_for(module, args, kwargs, axes))


def _choose_sizes(specs: tuple[InputSpec, ...], taken: set[int], limits: Limits) -> dict[str, int]:
    written = {dim for spec in specs for dim in spec.dims if isinstance(dim, int)}
    chooser = SizeChooser(taken | written)
    sizes: dict[str, int] = {}
    for dim in (dim for spec in specs for dim in spec.dims if isinstance(dim, str)):
        if dim not in sizes:
            low, high = limits.get(dim) or _limits_by_name(dim, limits)
            sizes[dim] = chooser.pick(at_least=low if high is None else min(low, high), at_most=high)
    return sizes


def _limits_by_name(dim: str, limits: Limits) -> tuple[int, int | None]:
    if "batch" in dim.lower() or dim.lower() in ("b", "n"):
        return limits["batch"]
    return (5, limits["seq"][1]) if any(word in dim.lower() for word in _LENGTHS) else (5, None)


def _positional_only(module: Any, kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Parameters written before ``/`` cannot be passed by name."""
    first = [
        name for name, p in parameters_of(module).items() if p.kind is p.POSITIONAL_ONLY and name in kwargs
    ]
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
        raise InputError(
            f"forward of {source} does not take these inputs: {e}", hint="Leave out the surplus."
        ) from e
    values, notes = _fitted(module, named, specs)
    args = tuple(values[name] for name in list(values)[: len(args)]) if args else ()
    kwargs = {name: values.get(name, value) for name, value in kwargs.items()}
    if shapes is None:
        known = specs or derive_specs(module) or ()
        axes = axes or {
            s.name: s.dynamic for s in known if getattr(values.get(s.name), "ndim", -1) == len(s.dims)
        }
        shapes = shapes_for(module, args, kwargs, axes)
    return _grown(module, args, kwargs, shapes, notes)


def _fitted(
    module: Any, named: dict[str, Any], specs: tuple[InputSpec, ...]
) -> tuple[dict[str, Any], tuple[str, ...]]:
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


def _to_cpu(value: Any) -> Any:
    from torch import Tensor
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.detach().cpu() if isinstance(leaf, Tensor) else leaf, value)


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


def _for_program(program: Any, given: Given, specs: tuple[InputSpec, ...], source: str) -> Chosen:
    """A program's axes were settled when it was traced; only values are open."""
    if given.args or given.kwargs:
        return Chosen(_to_cpu(given.args), {k: _to_cpu(v) for k, v in given.kwargs.items()})
    notes: tuple[str, ...] = ()
    values: dict[str, Any] = {}
    if given.file is not None:
        args, kwargs = read_inputs(Path(given.file))
        values = {**dict(zip(map(str, program.graph_signature.user_inputs), args, strict=False)), **kwargs}
    elif specs:
        limits = {"batch": (3, None), "seq": (7, None)}
        sizes = _choose_sizes(specs, set(), limits)
        values = fill_tensors(specs, sizes, vocabulary_of(program.module()))
        notes = (
            "a .pt2 program keeps the dynamic axes it was exported with; --input only shapes its examples",
        )
    args, kwargs = program_examples(program, values, source=source)
    return Chosen(args, kwargs, None, notes)


def _for_script(module: Any, given: Given, specs: tuple[InputSpec, ...], source: str) -> Chosen:
    """TorchScript has a schema and no Python signature; inputs go by position, in its order."""
    from ..load.torchscript import parameter_names

    names = parameter_names(module)
    axes = {spec.name: spec.dynamic for spec in specs}
    if given.args or given.kwargs or given.file is not None:
        args, kwargs = (
            read_inputs(Path(given.file)) if given.file is not None else (given.args, dict(given.kwargs))
        )
    elif specs:
        limits = {"batch": (3, None), "seq": (7, None)}
        kwargs = fill_tensors(specs, _choose_sizes(specs, numbers_of(module), limits), vocabulary_of(module))
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
    values = tuple(_to_cpu(ordered[name]) for name in names if name in ordered)
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
