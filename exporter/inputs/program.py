"""Example inputs of programs that are traced already: the shapes are settled, values are all that is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import InputError
from .spec import InputSpec
from .values import Vocabulary, fill_tensors

__all__ = ["program_examples"]


def program_examples(program: Any, values: Mapping[str, Any], *, source: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return inputs that a ``torch.export`` program accepts: its own examples, or fresh ones of its shapes.

    Args:
        program: ``ExportedProgram``.
        values: Tensors by input name that replace the chosen ones.
        source: For messages.

    Raises:
        InputError: A value for an input that the program does not have.
    """
    names = [str(name) for name in program.graph_signature.user_inputs]
    unknown = sorted(set(values) - set(names))
    if unknown:
        raise InputError(f"{source} has no input {', '.join(unknown)}", hint=f"Its inputs: {', '.join(names)}.")
    own = program.example_inputs
    if not values and isinstance(own, tuple) and len(own) == 2 and isinstance(own[1], Mapping):
        return tuple(own[0]), dict(own[1])
    metas = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    flat = [values[name] if name in values else _example(program, name, metas.get(name)) for name in names]
    from torch.utils import _pytree as pytree

    spec = program.call_spec.in_spec
    if spec is None:
        return tuple(flat), {}
    args, kwargs = pytree.tree_unflatten(flat, spec)
    return tuple(args), dict(kwargs)


def _example(program: Any, name: str, meta: Any) -> Any:
    if not hasattr(meta, "shape"):
        return meta
    shape = tuple(_size(program, size) for size in meta.shape)
    spec = InputSpec(name, str(meta.dtype).removeprefix("torch."), shape)
    return fill_tensors([spec], {}, Vocabulary())[name]


def _size(program: Any, size: Any) -> int:
    """A size within the range of a symbol; by the symbol's own number, so that one symbol is one size."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    chosen = {symbol: _within(program, symbol) for symbol in expression.free_symbols}
    return int(expression.subs(chosen))


def _within(program: Any, symbol: Any) -> int:
    bounds = program.range_constraints.get(symbol)
    order = sorted(str(s) for s in program.range_constraints).index(str(symbol)) if bounds is not None else 0
    wished = 3 + 2 * order
    if bounds is None:
        return wished
    low = max(2, int(bounds.lower))
    return low + wished if not bounds.upper.is_finite else min(low + wished, int(bounds.upper))
