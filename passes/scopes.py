"""Which values a node may read where a graph has bodies of If, Loop and Scan: its own graph's and those around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

from .graph import Builder

__all__ = ["Scopes"]


class Scopes:
    """The nesting of a graph's bodies, as it stands when this is made.

    Args:
        root: The main graph.
    """

    def __init__(self, root: ir.Graph) -> None:
        self.graphs: tuple[ir.Graph, ...] = (root, *root.subgraphs())
        self._around: dict[int, ir.Graph] = {}
        for graph in self.graphs if len(self.graphs) > 1 else ():
            for node in graph:
                for body in _bodies(node):
                    self._around[id(body)] = graph

    def fits(self, g: Builder, old: Sequence[ir.Value], new: Sequence[ir.Value], at: ir.Graph) -> bool:
        """Whether a rewrite placed in one graph reads what is visible there, and replaces what belongs there."""
        if len(self.graphs) == 1:
            return True
        built = {id(o) for n in g.nodes for o in n.outputs} | {id(v) for v in g.initializers}
        read = [v for n in g.nodes for v in n.inputs if v is not None and id(v) not in built]
        given = [(v, w) for v, w in zip(old, new, strict=True) if id(w) not in built]
        if any(_home(v) is not at for v in old) or any(v.is_graph_output() and _home(w) is not at for v, w in given):
            return False
        return all(self._sees(at, _home(v)) for v in (*read, *(w for _, w in given)))

    def _sees(self, at: ir.Graph | None, home: ir.Graph | None) -> bool:
        while at is not None:
            if home is None or home is at:
                return True
            at = self._around.get(id(at))
        return False


def _home(value: ir.Value) -> ir.Graph | None:
    """The graph a value belongs to; None for a constant that belongs to none yet."""
    node = value.producer()
    graph = value.graph if node is None else node.graph
    return graph if isinstance(graph, ir.Graph) else None


def _bodies(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.value
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.value
