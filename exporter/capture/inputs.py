"""Names, axes and sizes of a model's example inputs."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

from ...runtime.errors import InputError
from ...runtime.shapes import evaluate
from ..loaded import Loaded

__all__ = ["Axis", "ExampleInput", "Examples", "examples_of"]


@dataclasses.dataclass(frozen=True)
class Axis:
    """A dynamic axis as the caller declared it.

    Attributes:
        name: The declared name, or "" for an unnamed hint (``Dim.DYNAMIC``).
        low, high: Declared bounds, None where there are none; of a derived axis those of its root.
        automatic: Declared as ``Dim.AUTO``: torch may make it static without it being an error.
        root: The axis that it is declared as an expression of ("n" for ``2 * Dim("n") + 1``), else "".
        factor, offset: That expression.
        summed: Declared as text that is arithmetic of other names (``"past + seq"``): its size follows theirs.
    """

    name: str = ""
    low: int | None = None
    high: int | None = None
    automatic: bool = False
    root: str = ""
    factor: int = 1
    offset: int = 0
    summed: bool = False

    @property
    def derived(self) -> bool:
        """Whether the axis is declared as an expression of another one."""
        return bool(self.root)

    @property
    def key(self) -> str:
        """The name whose size says the size of this axis."""
        return self.root or self.name

    def size_at(self, size: int) -> int:
        """The size of the axis where the axis :attr:`key` has this one."""
        return self.factor * size + self.offset

    def hint(self) -> Any:
        """What torch.export is told: bounds kept, relations between axes left for it to find."""
        kind = Dim.AUTO if self.automatic else Dim.DYNAMIC
        return kind if self.derived or (self.low is None and self.high is None) else kind(min=self.low, max=self.high)


@dataclasses.dataclass(frozen=True)
class ExampleInput:
    """One leaf of the example inputs.

    Attributes:
        name: ``forward``'s parameter, with ".key" for every level of nesting.
        value: The tensor, or the plain value that is baked in.
        axes: Declared dynamic axes of a tensor.
    """

    name: str
    value: Any
    axes: Mapping[int, Axis] = dataclasses.field(default_factory=dict)

    @property
    def is_tensor(self) -> bool:
        """Whether the leaf becomes an input of the graph."""
        return isinstance(self.value, torch.Tensor)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The example inputs of a call, flattened in the order torch.export flattens them.

    Attributes:
        leaves: Every leaf, tensors and baked-in values.
        structure: The pytree structure of ``(args, kwargs)``.
    """

    leaves: tuple[ExampleInput, ...]
    structure: Any

    @property
    def tensors(self) -> tuple[ExampleInput, ...]:
        """The leaves that become inputs of the graph."""
        return tuple(leaf for leaf in self.leaves if leaf.is_tensor)

    def call(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """``(args, kwargs)`` to call the model with."""
        args, kwargs = pytree.tree_unflatten([leaf.value for leaf in self.leaves], self.structure)
        return args, kwargs

    def shapes(self) -> Any:
        """``dynamic_shapes`` for torch.export in the shape of :meth:`call`, hints instead of names."""
        specs = [self._spec(leaf) for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(specs, self.structure)
        return (*args, *kwargs.values())

    @staticmethod
    def _spec(leaf: ExampleInput) -> dict[int, Any] | None:
        if not leaf.is_tensor:
            return None
        return {axis: leaf.axes[axis].hint() if axis in leaf.axes else None for axis in range(leaf.value.dim())}

    def sizes(self) -> dict[str, int]:
        """Size of each named dynamic axis in the examples, in order of first appearance; sums are left out.

        An axis that is derived from another counts as that one: ``8 * Dim("n")`` of size 24 is n = 3.
        """
        sizes: dict[str, int] = {}
        for leaf, at, axis in self.dynamic():
            size = leaf.value.shape[at]
            if axis.derived:
                sizes.setdefault(axis.root, (size - axis.offset) // axis.factor)
            elif axis.name and not axis.summed:
                sizes[axis.name] = size
        return sizes

    def dynamic(self) -> Iterator[tuple[ExampleInput, int, Axis]]:
        """Every declared dynamic axis as (input, axis number, declaration)."""
        for leaf in self.tensors:
            for at, axis in sorted(leaf.axes.items()):
                yield leaf, at, axis

    def resized(self, sizes: Mapping[str, int]) -> Examples:
        """The same inputs with named axes of other sizes: entries are repeated, or cut off."""
        sizes = self.sizes() | dict(sizes)
        leaves = tuple(self._resize(leaf, sizes) if leaf.is_tensor else leaf for leaf in self.leaves)
        return Examples(leaves, self.structure)

    @staticmethod
    def _resize(leaf: ExampleInput, sizes: Mapping[str, int]) -> ExampleInput:
        value = leaf.value
        for at, axis in sorted(leaf.axes.items()):
            size = evaluate(axis.name, sizes) if axis.summed else value.shape[at]
            if not axis.summed and axis.key in sizes:
                size = axis.size_at(sizes[axis.key])
            if size != value.shape[at] and value.shape[at] > 0:
                value = value.index_select(at, torch.arange(size) % value.shape[at])
        return dataclasses.replace(leaf, value=value)


def examples_of(loaded: Loaded) -> Examples:
    """Flatten the examples of a loaded model and attach the declared axes.

    Raises:
        InputError: the examples do not fit the signature of ``forward``, or one axis name has two sizes.
    """
    args, kwargs, names = _bind(loaded)
    paths, structure = pytree.tree_flatten_with_path((args, kwargs))
    specs = _specs_by_name(_gathered_apart(loaded.dynamic_shapes, loaded), names)
    leaves = []
    for path, value in paths:
        top, rest = _top_level(path, names, len(args))
        spec = _spec_at(specs.get(top), rest)
        name = ".".join([top, *(str(key) for key in rest)])
        axes = _axes(spec, value, name) if isinstance(value, torch.Tensor) else {}
        leaves.append(ExampleInput(name, value, axes))
    examples = Examples(tuple(leaves), structure)
    _check_sizes(examples)
    return examples


def _signature(loaded: Loaded) -> inspect.Signature:
    if loaded.kind != "torchscript":
        return inspect.signature(loaded.module.forward)
    kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    return inspect.Signature(
        [
            inspect.Parameter(a.name, kind, default=a.default_value if a.has_default_value() else empty)
            for a in loaded.module.forward.schema.arguments[1:]
        ]
    )


def _bind(loaded: Loaded) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    signature = _signature(loaded)
    try:
        bound = signature.bind(*loaded.args, **loaded.kwargs)
    except TypeError as error:
        expected = ", ".join(signature.parameters)
        raise InputError(
            f"The example inputs do not fit forward({expected}): {error}.",
            hint="Give one input for every parameter that has no default, under the parameter's name.",
            where=loaded.source or loaded.name,
        ) from None
    if loaded.kind == "torchscript":
        return _by_position(bound)
    args: list[Any] = []
    names: list[str] = []
    for name, parameter in signature.parameters.items():
        if name not in bound.arguments or len(args) == len(loaded.args):
            break
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            extra = bound.arguments[name]
            args.extend(extra)
            names.extend(f"{name}.{index}" for index in range(len(extra)))
            break
        args.append(bound.arguments[name])
        names.append(name)
    order = {name: index for index, name in enumerate(signature.parameters)}
    kwargs = dict(sorted(loaded.kwargs.items(), key=lambda item: order.get(item[0], len(order))))
    return tuple(args), kwargs, [*names, *kwargs]


def _by_position(bound: inspect.BoundArguments) -> tuple[tuple[Any, ...], dict[str, Any], list[str]]:
    """Every argument of a compiled method by position, defaults included: its converter wants all of them."""
    bound.apply_defaults()
    return tuple(bound.arguments.values()), {}, list(bound.arguments)


def _top_level(path: Sequence[Any], names: Sequence[str], arg_count: int) -> tuple[str, list[Any]]:
    keys = [_key(entry) for entry in path]
    top = names[keys[1]] if keys[0] == 0 else str(keys[1])
    return top, keys[2:]


def _key(entry: Any) -> Any:
    for field in ("idx", "key", "name"):
        if hasattr(entry, field):
            return getattr(entry, field)
    return str(entry)


def _gathered_apart(dynamic_shapes: Any, loaded: Loaded) -> Any:
    """``dynamic_shapes`` with one entry an input, where torch's form nests those of ``*args`` and ``**kwargs``."""
    kinds = {parameter.kind: name for name, parameter in _signature(loaded).parameters.items()}
    rest, named = kinds.get(inspect.Parameter.VAR_POSITIONAL), kinds.get(inspect.Parameter.VAR_KEYWORD)
    if isinstance(dynamic_shapes, Mapping):
        shapes = dict(dynamic_shapes)
        if rest is not None and isinstance(shapes.get(rest), (tuple, list)):
            shapes |= {f"{rest}.{index}": spec for index, spec in enumerate(shapes.pop(rest))}
        if named is not None and named not in loaded.kwargs and isinstance(shapes.get(named), Mapping):
            shapes |= shapes.pop(named)
        return shapes
    if rest is None or dynamic_shapes is None:
        return dynamic_shapes
    before = list(_signature(loaded).parameters).index(rest)
    inner = dynamic_shapes[before] if before < len(dynamic_shapes) else None
    nested = isinstance(inner, (tuple, list)) and any(isinstance(spec, (Mapping, tuple, list)) for spec in inner)
    if not nested or len(inner) != len(loaded.args) - before:
        return dynamic_shapes
    return (*dynamic_shapes[:before], *inner, *dynamic_shapes[before + 1 :])


def _specs_by_name(dynamic_shapes: Any, names: Sequence[str]) -> dict[str, Any]:
    if dynamic_shapes is None:
        return {}
    if isinstance(dynamic_shapes, Mapping):
        unknown = sorted(str(name) for name in dynamic_shapes if name not in names)
        if unknown and not set(names) & {str(name).split(".")[0] for name in unknown}:
            raise InputError(
                f"dynamic_shapes names {', '.join(unknown)}, which is not among the inputs ({', '.join(names)}).",
                hint="Use the names of forward's parameters that have an example input.",
            )
        return dict(dynamic_shapes)
    return dict(zip(names, dynamic_shapes, strict=False))


def _spec_at(spec: Any, keys: Sequence[Any]) -> Any:
    for key in keys:
        if isinstance(spec, Mapping):
            spec = spec.get(key)
        elif isinstance(spec, (tuple, list)) and isinstance(key, int) and key < len(spec):
            spec = spec[key]
        else:
            return None
    return spec


def _axes(spec: Any, value: torch.Tensor, name: str) -> dict[int, Axis]:
    if spec is None:
        return {}
    entries = spec.items() if isinstance(spec, Mapping) else enumerate(spec)
    axes: dict[int, Axis] = {}
    for at, dim in entries:
        if not isinstance(at, int) or not -value.dim() <= at < value.dim():
            raise InputError(
                f"dynamic_shapes declares axis {at} of input '{name}', which has {value.dim()} axes.",
                hint="Number the axes from 0.",
            )
        axis = _axis(dim)
        if axis is not None:
            axes[at % value.dim()] = axis
    return axes


def _axis(dim: Any) -> Axis | None:
    if dim is None or isinstance(dim, int):
        return None
    if isinstance(dim, str):
        return Axis(dim.strip(), summed=not dim.strip().isidentifier())
    kind = getattr(getattr(dim, "type", None), "name", None)
    if kind is not None:
        return None if kind == "STATIC" else Axis("", dim.min, dim.max, automatic=kind == "AUTO")
    root = getattr(dim, "root", None)
    low, high = getattr(root or dim, "min", None), getattr(root or dim, "max", None)
    low = low if isinstance(low, int) and low > 0 else None
    axis = Axis(str(dim.__name__), low, high if isinstance(high, int) else None)
    if root is None:
        return axis
    offset = int(dim.fn(0))  # torch takes linear expressions only
    return dataclasses.replace(axis, root=str(root.__name__), factor=int(dim.fn(1)) - offset, offset=offset)


def _check_sums(examples: Examples) -> None:
    sizes = examples.sizes()
    for leaf, at, axis in examples.dynamic():
        if not axis.summed:
            continue
        wanted, size = evaluate(axis.name, sizes), leaf.value.shape[at]
        if wanted != size:
            raise InputError(
                f"The axis '{axis.name}' is {wanted} by the other inputs and {size} in input '{leaf.name}'.",
                hint="Give example inputs whose sizes agree with the names.",
            )


def _check_derived(examples: Examples) -> None:
    sizes = examples.sizes()
    for leaf, at, axis in examples.dynamic():
        size = leaf.value.shape[at]
        if axis.derived and axis.size_at(sizes[axis.root]) != size:
            raise InputError(
                f"The axis '{axis.name}' is {size} in input '{leaf.name}', which '{axis.root}' = {sizes[axis.root]} "
                "does not make.",
                hint="Give example inputs whose sizes agree with the declared expression.",
            )


def _check_sizes(examples: Examples) -> None:
    seen: dict[str, tuple[str, int, int]] = {}
    _check_sums(examples)
    _check_derived(examples)
    for leaf, at, axis in examples.dynamic():
        size = leaf.value.shape[at]
        first = seen.setdefault(axis.name, (leaf.name, at, size)) if axis.name else ("", 0, size)
        if first[2] != size:
            raise InputError(
                f"The axis '{axis.name}' is {first[2]} in input '{first[0]}' and {size} in input '{leaf.name}'.",
                hint="Axes of one name must have one size; give the second one its own name.",
            )
