"""Cutting one attention module out of a graph, before and after fusion, as plain data for a drawing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import onnx_ir as ir

from ..runtime.picture import Picture, PictureNode
from ..runtime.report import Site
from ..runtime.summary import group_sites
from .graph import attribute, dims, op_name

__all__ = ["before_and_after"]

_MODULE: Final = "deployml.module"
_MOST: Final = 48
#: How far around a site to look where nothing says which nodes belong to its module.
_HOPS: Final = 3
_HEADS: Final = ("num_heads", "q_num_heads")
_KV_HEADS: Final = ("kv_num_heads",)
_SHAPE_OPS: Final = frozenset(
    {
        "Add",
        "Cast",
        "Concat",
        "Div",
        "Gather",
        "Mul",
        "Slice",
        "Squeeze",
        "Sub",
        "Unsqueeze",
        "Reshape",
        "Identity",
    }
)


def before_and_after(before: ir.Model, after: ir.Model, sites: Sequence[Site]) -> tuple[Picture | None, Picture | None]:
    """Pictures of the module of a typical site in both graphs.

    The site is the first of the largest group of fused sites; without any, of the declined ones. Nodes belong
    together by the module path in their metadata; where a graph has none, the surroundings of the site are shown
    and the part of the other graph between the same values.

    Args:
        before: The graph with attention as plain operators.
        after: The fused graph.
        sites: What became of its attentions.

    Returns:
        Both pictures, or None for one that cannot be found.
    """
    site = _typical(sites)
    centre = None if site is None else next((n for n in after.graph if n.name == site.name), None)
    if site is None or centre is None:
        return None, None
    new = _with_nameless(after.graph, _of_module(after.graph, site.module_path)) or _around(centre)
    old = _of_module(before.graph, site.module_path) or _between(before.graph, new)
    if not any(n is centre for n in new):  # the node was moved out of its module, by sharing work between layers
        new = _around(centre)
    kept = {n.name for n in new}
    pictures = (
        _picture("Before", old, lambda n: n.name not in kept, [n for n in old if n.op_type == "Softmax"]),
        _picture("After", new, lambda n: n is centre, [centre]),
    )
    return pictures[0] if old else None, pictures[1]


def _typical(sites: Sequence[Site]) -> Site | None:
    groups = group_sites([s for s in sites if s.status == "fused"] or sites)
    largest = max(groups, key=lambda g: len(g.sites), default=None)
    return None if largest is None else largest.sites[0]


def _of_module(graph: ir.Graph, path: str | None) -> list[ir.Node]:
    """Nodes of a module, and of the modules in it; none when the path says nothing."""
    if not path:
        return []
    plumbing = _plumbing(graph)
    found = []
    for node in graph:
        module = node.metadata_props.get(_MODULE, "")
        if (module == path or module.startswith(f"{path}.")) and node not in plumbing:
            found.append(node)
    return found


def _with_nameless(graph: ir.Graph, nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """Add the nodes next to a module that no module claims: a simplifier made them, of nodes that had names."""
    plumbing, found = _plumbing(graph), dict.fromkeys(nodes)
    work = list(nodes)
    while work and len(found) < len(nodes) + _MOST // 2:
        node = work.pop()
        near = [n for n in (*_producers(node), *_consumers(node)) if not n.metadata_props.get(_MODULE)]
        fresh = [n for n in dict.fromkeys(near) if n not in found and n not in plumbing]
        found |= dict.fromkeys(fresh)
        work += fresh
    return [n for n in graph if n in found]


def _plumbing(graph: ir.Graph) -> set[ir.Node]:
    """Constants and nodes that compute nothing but shapes: they would hide what happens to the tensors."""
    found: set[ir.Node] = set()
    for node in graph:
        read = [p for p in _producers(node) if p.op_type != "Constant"]
        fed = bool(read) and all(p in found for p in read) and not any(v.is_graph_input() for v in node.inputs if v)
        if node.op_type in ("Constant", "Shape", "Size") or (fed and node.op_type in _SHAPE_OPS):
            found.add(node)
    return found


def _around(centre: ir.Node) -> list[ir.Node]:
    reached, edge = [centre], [centre]
    for _ in range(_HOPS):
        edge = [n for node in edge for n in (*_producers(node), *_consumers(node)) if not _holds(reached, n)]
        reached += dict.fromkeys(edge)
        if len(reached) > _MOST:
            break
    assert centre.graph is not None
    plumbing = _plumbing(centre.graph)
    return [n for n in centre.graph if _holds(reached, n) and n not in plumbing]


def _between(graph: ir.Graph, others: Sequence[ir.Node]) -> list[ir.Node]:
    """The part of ``graph`` that lies between the values at the border of ``others``, found by their names."""
    made = {o.name for n in others for o in n.outputs}
    entering = {v.name for n in others for v in n.inputs if v is not None} - made
    ends = [
        o for n in others for o in n.outputs if o.is_graph_output() or any(not _holds(others, c) for c in _readers(o))
    ]
    leaving = {o.name for o in ends if o.name}
    by_name = {o.name: n for n in graph for o in n.outputs}
    work = [by_name[name] for name in sorted(leaving) if name in by_name]
    found: dict[ir.Node, None] = {}
    plumbing = _plumbing(graph)
    while work and len(found) <= 4 * _MOST:
        node = work.pop()
        if node in found or node in plumbing:
            continue
        found[node] = None
        work += [p for v in node.inputs if v is not None and v.name not in entering for p in [v.producer()] if p]
    return [n for n in graph if n in found]


def _picture(
    title: str, nodes: Sequence[ir.Node], core: Callable[[ir.Node], bool], centres: Sequence[ir.Node]
) -> Picture:
    shown = _nearest(nodes, centres)
    plumbing = _plumbing(shown[0].graph) if shown and shown[0].graph is not None else set()
    boxes = [PictureNode(op=op_name(n).rpartition("::")[2], detail=_detail(n), core=core(n)) for n in shown]
    place = {n: i for i, n in enumerate(shown)}
    edges: dict[tuple[int, int], None] = {}
    border: dict[str, int] = {}

    def at_border(key: str, box: PictureNode) -> int:
        if key not in border:
            border[key] = len(boxes)
            boxes.append(box)
        return border[key]

    for node in shown:
        for value in node.inputs:
            if value is None or value.is_initializer() or value.const_value is not None:
                continue
            source = value.producer()
            if source in plumbing:
                continue
            first = place[source] if source in place else at_border(f"in {value.name}", _outside(value, source))
            edges[first, place[node]] = None
        for value in node.outputs:
            outside = [c for c in _readers(value) if c not in place]
            inside = len(outside) < len(_readers(value))  # what is shared with other layers is drawn once, here
            if (outside and not inside) or value.is_graph_output():
                edges[place[node], at_border(f"out {value.name}", _reader_box(value, outside))] = None
    return Picture(title=title, nodes=tuple(boxes), edges=tuple(edges), left_out=len(nodes) - len(shown))


def _nearest(nodes: Sequence[ir.Node], centres: Sequence[ir.Node]) -> list[ir.Node]:
    """At most so many nodes that a drawing stays readable: those nearest to the attention."""
    if len(nodes) <= _MOST:
        return list(nodes)
    inside = set(nodes)
    reached = dict.fromkeys(centres[:1] or nodes[:1])
    edge = list(reached)
    while edge and len(reached) < _MOST:
        near = [n for node in edge for n in (*_producers(node), *_consumers(node)) if n in inside]
        edge = [n for n in dict.fromkeys(near) if n not in reached][: _MOST - len(reached)]
        reached |= dict.fromkeys(edge)
    return [n for n in nodes if n in reached]


def _outside(value: ir.Value, source: ir.Node | None) -> PictureNode:
    if source is None:
        return PictureNode(op=str(value.name), border=True)
    return PictureNode(op=source.op_type, border=True)


def _reader_box(value: ir.Value, readers: Sequence[ir.Node]) -> PictureNode:
    if not readers:
        return PictureNode(op=str(value.name), border=True)
    ops = list(dict.fromkeys(n.op_type for n in readers))
    more = f" +{len(ops) - 1}" if len(ops) > 1 else ""
    return PictureNode(op=f"{ops[0]}{more}", border=True)


def _detail(node: ir.Node) -> str:
    heads = _first(node, _HEADS)
    if heads is not None:
        shared = _first(node, _KV_HEADS)
        return f"{heads} heads" + (f", {shared} for keys" if shared not in (None, heads) else "")
    if node.op_type in ("MatMul", "Gemm"):
        weights = [dims(v) for v in node.inputs[:2] if v is not None and v.const_value is not None]
        if weights and weights[0]:
            return f"weight {' × '.join(map(str, weights[0]))}"
    return ""


def _first(node: ir.Node, names: Iterable[str]) -> int | None:
    return next((found for found in (attribute(node, name) for name in names) if found), None)


def _readers(value: ir.Value) -> list[ir.Node]:
    return list(dict.fromkeys(use.node for use in value.uses()))


def _producers(node: ir.Node) -> list[ir.Node]:
    return [p for v in node.inputs if v is not None for p in [v.producer()] if p is not None]


def _consumers(node: ir.Node) -> list[ir.Node]:
    return [c for o in node.outputs for c in _readers(o)]


def _holds(nodes: Iterable[ir.Node], node: ir.Node) -> bool:
    return any(n is node for n in nodes)
