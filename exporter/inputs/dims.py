"""Dynamic axes in the form torch.export.export takes, one ``Dim`` object per name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .fields import parameters_of

__all__ = ["DimNames", "by_parameter", "grow", "shapes_for", "with_dims"]


class DimNames:
    """Makes one ``torch.export.Dim`` per name, so that a name shared by two inputs is one symbol."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        """Return the ``Dim`` of this name; arithmetic of names stays text, which torch has no object for."""
        if not name.isidentifier():
            return name
        if name not in self._made:
            from torch.export import Dim

            self._made[name] = Dim(name)
        return self._made[name]


def by_parameter(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Assign inputs to the parameters of ``forward``, in its order; ``*args`` and ``**kwargs`` keep their containers.

    Raises:
        TypeError: ``forward`` does not take these inputs.
    """
    parameters = parameters_of(module)
    if not parameters:
        return dict(kwargs)
    return dict(inspect.Signature(list(parameters.values())).bind(*args, **kwargs).arguments)


def shapes_for(
    module: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    axes: Mapping[str, Mapping[int, str]],
    *,
    positional: Sequence[str] = (),
) -> Any | None:
    """Build ``dynamic_shapes``.

    Args:
        module: The module to be exported.
        args: Positional inputs.
        kwargs: Named inputs.
        axes: Dimension names as ``{input: {axis: name}}``.
        positional: Names of ``args`` where the module has no Python signature (TorchScript); the result is then a
            tuple in that order.

    Returns:
        What ``torch.export.export`` takes as ``dynamic_shapes``; None where every axis is fixed.
    """
    if not any(axes.values()):
        return None
    dims = DimNames()

    def one(name: str) -> Any:
        return {axis: dims(dim) for axis, dim in sorted(axes[name].items())} if axes.get(name) else None

    if positional:
        return tuple(one(name) for name in positional[: len(args)])
    free = _free(module)
    bound = [name for name in by_parameter(module, args, kwargs) if name not in free]
    return {name: one(name) for name in dict.fromkeys([*bound, *kwargs])}


def _free(module: Any) -> set[str]:
    """The parameter ``**kwargs``: its inputs go by their own names."""
    return {name for name, p in parameters_of(module).items() if p.kind is p.VAR_KEYWORD}


def with_dims(shapes: Any) -> Any:
    """Replace dimension names given as text by ``Dim`` objects: torch.export itself takes no text."""
    return _with_dims(shapes, DimNames())


def _with_dims(shapes: Any, dims: DimNames) -> Any:
    if isinstance(shapes, str):
        return dims(shapes)
    if isinstance(shapes, Mapping):
        return {key: _with_dims(value, dims) for key, value in shapes.items()}
    if type(shapes) in (list, tuple):
        return type(shapes)(_with_dims(value, dims) for value in shapes)
    return shapes


def grow(
    module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any, pick: Callable[[], int]
) -> tuple[tuple[Any, ...], dict[str, Any], tuple[str, ...]]:
    """Repeat example inputs along dynamic axes of size 1, which torch.export would take for constants.

    Args:
        module: The module to be exported.
        args: Positional inputs.
        kwargs: Named inputs.
        shapes: ``dynamic_shapes`` of the caller.
        pick: Gives a fresh size for a dimension.

    Returns:
        Inputs with every dynamic axis of size 1 repeated, and the names of the inputs that were.
    """
    sizes: dict[str, int] = {}
    grown: list[str] = []

    def enlarge(name: str, tensor: Any, spec: Any) -> Any:
        for axis, dim in _axes(spec):
            if not hasattr(tensor, "shape") or axis >= tensor.dim() or tensor.shape[axis] != 1 or not _dynamic(dim):
                continue
            key = getattr(dim, "__name__", f"axis {axis}")
            if key not in sizes:
                sizes[key] = pick()
            repeats = [1] * tensor.dim()
            repeats[axis] = sizes[key]
            tensor = tensor.repeat(*repeats)
            grown.append(name)
        return tensor

    names = list(parameters_of(module))
    per_arg = _per_arg(shapes, names, len(args))
    new_args = tuple(enlarge(names[i] if i < len(names) else str(i), value, per_arg[i]) for i, value in enumerate(args))
    named = shapes if isinstance(shapes, Mapping) else dict(zip(kwargs, list(shapes)[len(args) :], strict=False))
    new_kwargs = {name: enlarge(name, value, named.get(name)) for name, value in kwargs.items()}
    return new_args, new_kwargs, tuple(dict.fromkeys(grown))


def _per_arg(shapes: Any, names: list[str], count: int) -> list[Any]:
    if isinstance(shapes, Mapping):
        found = [shapes.get(name) for name in names[:count]]
    else:
        found = list(shapes)[:count]
    return found + [None] * (count - len(found))


def _axes(spec: Any) -> list[tuple[int, Any]]:
    if isinstance(spec, Mapping):
        return [(axis, dim) for axis, dim in spec.items() if isinstance(axis, int)]
    return list(enumerate(spec)) if isinstance(spec, list | tuple) else []


def _dynamic(dim: Any) -> bool:
    """A named Dim, DYNAMIC or AUTO; not None, STATIC or a number."""
    return dim is not None and not isinstance(dim, int) and "STATIC" not in str(getattr(dim, "type", ""))
