"""Whether a rewrite would make a graph read its own results."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

__all__ = ["closes_cycle"]


def closes_cycle(old: Sequence[ir.Value], new: Sequence[ir.Value], made: Sequence[ir.Node]) -> bool:
    """Whether a value would depend on itself once all readers of ``old`` read ``new`` instead.

    One value is computed before all of its readers, and so is what replaces it. Several that become the results of one
    node are not: a reader of the first may compute what the second needs.

    Args:
        old: Values of the graph.
        new: What is to replace them, in the same order.
        made: The nodes of the rewrite, which go on reading ``old`` where they do.
    """
    if len(old) < 2:
        return False
    instead = {id(a): b for a, b in zip(old, new, strict=True)}
    own = {id(n) for n in made}
    open_, done = set[int](), set[int]()
    stack = [(n, False) for v in new if (n := v.producer()) is not None]
    while stack:
        node, leaving = stack.pop()
        if leaving:
            open_.discard(id(node))
            done.add(id(node))
            continue
        if id(node) in done:
            continue
        if id(node) in open_:
            return True
        open_.add(id(node))
        stack.append((node, True))
        for value in node.inputs:
            read = value if value is None or id(node) in own else instead.get(id(value), value)
            above = None if read is None else read.producer()
            if above is None or id(above) in done:
                continue
            if id(above) in open_:
                return True
            stack.append((above, False))
    return False
