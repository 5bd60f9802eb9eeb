"""Which symbolic axes of a sub-graph must have one size for it to run at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import onnx_ir as ir

from . import canonical
from .letters import letters_of
from .symbols import free_names, size_of

__all__ = ["Dim", "apply_ties", "tied"]

#: An axis: a name or a formula of names, or a number.
Dim = ir.SymbolicDim | int
#: Operators whose operands and result are broadcast against one another.
_BROADCAST: Final = frozenset(
    {
        *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "PRelu", "Sum", "Mean", "Min", "Max", "And", "Or", "Xor", "Where"),
        *("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"),
    }
)


def tied(nodes: Iterable[ir.Node], known: Sequence[str]) -> dict[str, Dim]:
    """Names of axes that must equal another axis, and that axis.

    Shape inference invents a name for every axis it cannot compute. Drawn apart, such names give sizes that do not go
    together, and nothing runs. An axis that is broadcast could also be 1; then the sizes of 1 alone try it.

    Args:
        nodes: Nodes of the sub-graph.
        known: Names that get sizes of their own, the first of a group being the one that the others follow.
    """
    groups: list[dict[str, Dim]] = []
    for pair in _pairs(nodes):
        _join(groups, *({_key(dim): dim} for dim in pair))
    found: dict[str, Dim] = {}
    for group in groups:
        leader = _leader(group, known)
        for key, dim in group.items():
            if leader is not None and isinstance(dim, ir.SymbolicDim) and dim is not leader and key in known:
                found[key] = leader
    return found


def apply_ties(ties: Mapping[str, Dim], sizes: dict[str, int]) -> dict[str, int]:
    """Give tied names the size of what they follow, in place."""
    for name, length in ties.items():
        if isinstance(length, int):
            sizes[name] = length
        elif all(n in sizes for n in free_names(length)):
            sizes[name] = size_of(length, sizes)
    return sizes


def _key(dim: Dim) -> str:
    return str(dim) if isinstance(dim, int) else str(dim.value)


def _join(groups: list[dict[str, Dim]], *members: dict[str, Dim]) -> None:
    """Make one group of everything that shares a member with these."""
    joined: dict[str, Dim] = {}
    for member in members:
        joined |= member
    kept = []
    for group in groups:
        if group.keys() & joined.keys():
            joined = group | joined
        else:
            kept.append(group)
    groups[:] = [*kept, joined]


def _leader(group: Mapping[str, Dim], known: Sequence[str]) -> Dim | None:
    """The member that decides the size: a number, else what known names outside compute, else the first known name."""
    number = next((d for d in group.values() if isinstance(d, int)), None)
    if number is not None:
        return number
    computed = [d for key, d in group.items() if isinstance(d, ir.SymbolicDim) and key not in known and free_names(d)]
    fitting = [d for d in computed if set(free_names(d)) <= set(known)]
    apart = next((d for d in fitting if not group.keys() & set(free_names(d))), None)
    if apart is not None:
        return apart
    return next((group[name] for name in known if name in group), fitting[0] if fitting else None)


def _pairs(nodes: Iterable[ir.Node]) -> Iterator[tuple[Dim, Dim]]:
    """Pairs of different axes that must be of one size."""
    for node in nodes:
        for dims in _columns(node):
            found = [d for d in dims if isinstance(d, int) or (d is not None and d.value is not None)]
            wide = [d for d in found if d != 1]
            yield from ((wide[0], other) for other in wide[1:] if _key(other) != _key(wide[0]))


def _columns(node: ir.Node) -> Iterator[list[Dim]]:
    """Axes of a node's operands that belong together."""
    if canonical.is_attention(node):
        yield from _of_attention(node)
    elif node.domain != "":
        return
    elif node.op_type == "Einsum":
        yield from _of_letters(node)
    elif node.op_type == "MatMul":
        yield from _of_product(node)
    elif node.op_type in _BROADCAST:
        shapes = [list(v.shape) for v in (*node.inputs, *node.outputs) if v is not None and v.shape is not None]
        yield from _aligned(shapes)


def _aligned(shapes: Sequence[list[Dim]]) -> Iterator[list[Dim]]:
    """Axes of several shapes, the last ones first."""
    for place in range(1, max((len(s) for s in shapes), default=0) + 1):
        yield [shape[-place] for shape in shapes if len(shape) >= place]


def _of_product(node: ir.Node) -> Iterator[list[Dim]]:
    left, right, out = [
        list(v.shape) if v is not None and v.shape is not None else [] for v in (*node.inputs, *node.outputs)
    ]
    if len(left) < 2 or len(right) < 2:
        return
    yield [left[-1], right[-2]]
    if len(out) >= 2:
        yield [left[-2], out[-2]]
        yield [right[-1], out[-1]]
    yield from _aligned([left[:-2], right[:-2], out[:-2]])


def _of_attention(node: ir.Node) -> Iterator[list[Dim]]:
    """Mask and bias are broadcast to (batch, heads, queries, keys)."""
    site = canonical.read(node)
    query, key = site.query.shape, site.key.shape
    if query is None or key is None or len(query) != 4 or len(key) != 4:
        return
    shapes = [list(v.shape) for v in (site.mask, site.bias) if v is not None and v.shape is not None]
    yield from _aligned([[query[0], query[1], query[2], key[2]], *shapes])


def _of_letters(node: ir.Node) -> Iterator[list[Dim]]:
    """Axes of an Einsum that carry one letter have one size, whatever they are called."""
    terms = (letters_of(node) or [""])[:-1]
    columns: dict[str, list[Dim]] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        shape = list(value.shape or ()) if value is not None else []
        for letter, dim in zip(term, shape, strict=False):
            columns.setdefault(letter, []).append(dim)
    yield from columns.values()
