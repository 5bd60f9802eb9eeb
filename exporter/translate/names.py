"""Names of the graph's inputs, outputs and axes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

__all__ = ["name_apart", "name_axes", "name_inputs", "name_outputs"]


def name_apart(model: ir.Model) -> None:
    """Give a value that has the name of another one a name of its own, in place.

    torch names a tensor that a module keeps after the attribute (``self.mean``) and a result after the operator
    (``x.mean()``), each without regard to the other.
    """
    values = _named_values(model)
    taken: set[str] = {value.name for value in values if value.name}
    seen: set[str] = set()
    for value in values:
        if value.name in seen:
            value.name = _fresh(value.name, taken)
        seen.add(value.name or "")


def name_inputs(model: ir.Model, names: Sequence[str]) -> None:
    """Name the inputs of a graph, in place; an inner value that has such a name already gets another one."""
    _rename(model, list(model.graph.inputs), names)


def name_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Name the outputs of a graph, in place.

    A tensor that is returned twice, or is an input or a weight, gets a node of its own first: ONNX wants every
    output to be one value of the graph.
    """
    outputs = model.graph.outputs
    seen: set[ir.Value] = set()
    for index, value in enumerate(list(outputs)):
        if value in seen or value.producer() is None:
            outputs[index] = _copy(model.graph, value)
        seen.add(outputs[index])
    _rename(model, list(outputs), names)


def _copy(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.Node("", "Identity", [value], name=f"node_{value.name}_returned")
    output = node.outputs[0]
    output.name = f"{value.name}_returned"
    output.shape, output.type = value.shape, value.type
    graph.append(node)
    return output


def _rename(model: ir.Model, values: Sequence[ir.Value], names: Sequence[str]) -> None:
    wanted = dict(zip(names, values, strict=True))
    taken = set(names)
    for value in _named_values(model):
        if value.name in wanted and wanted[value.name] is not value:
            value.name = _fresh(value.name, taken)
    for name, value in wanted.items():
        value.name = name


def _fresh(name: str, taken: set[str]) -> str:
    count = 1
    while f"{name}_inner_{count}" in taken:
        count += 1
    taken.add(f"{name}_inner_{count}")
    return f"{name}_inner_{count}"


def _named_values(model: ir.Model) -> list[ir.Value]:
    graph = model.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        values.extend(node.outputs)
    return values


def name_axes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Write the declared axis names into every shape of the model, in place.

    An expression that onnx_ir cannot read ("CeilToInt(...)") becomes a name of its own, the same wherever it stands.

    Args:
        model: The model, with torch's symbols in its shapes ("s53", "2*s53").
        names: Symbol -> axis name.
    """
    if not names:
        return
    symbols = "|".join(re.escape(symbol) for symbol in sorted(names, key=len, reverse=True))
    pattern = re.compile(rf"(?<!\w)({symbols})(?!\w)")
    known: dict[str, int | str] = {}
    taken = set(names.values())

    def rename(text: str) -> int | str:
        if text not in known:
            written = names.get(text) or pattern.sub(lambda match: names[match[1]], text)
            simplest = _simplest(written)
            known[text] = _fresh("size", taken) if simplest is None else simplest
        return known[text]

    values = _named_values(model)
    for function in model.functions.values():
        values.extend(function.inputs)
        values.extend(output for node in function.all_nodes() for output in node.outputs)
    for value in values:
        if value.shape is not None and not value.shape.is_static():
            value.shape = ir.Shape([_dim(dim, rename) for dim in value.shape])


def _simplest(text: str) -> int | str | None:
    """The shortest way to write an expression, a number if it is one; None when onnx_ir cannot read it.

    "4*batch//batch" is 4: what reads the graph compares dimensions as they are written.
    """
    dim = ir.SymbolicDim(text)
    try:
        plain = dim.simplify()
    except ValueError:
        return None
    return int(plain.evaluate({})) if not plain.free_symbols() else str(plain.value)


def _dim(dim: int | ir.SymbolicDim, rename: Callable[[str], str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else rename(dim.value)
