"""Which line of a model depends on the size it was traced at, when its program fails at another one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.export import ExportedProgram

from ..loaded import Loaded
from ..source_map import Frame
from .inputs import Examples
from .replay import ASSERTIONS, Replay, difference, line_of
from .trace import trace

__all__ = ["baked_line"]

#: Where a node comes from: its line with all that called it, and the modules it is in.
_Place = tuple[str, str]


def baked_line(loaded: Loaded, program: ExportedProgram, examples: Examples) -> Frame | None:
    """The line that means something else in a program than in its model at the sizes of some examples.

    The model is traced again at those sizes. The first line whose tensors differ between the two is the one, unless
    what it reads comes from lines that only one of them has: the branch that was taken, or not, is earlier.
    Where all lines agree as far as both have them, the first that differs in operators or constants is taken.

    Args:
        loaded: The model.
        program: What was captured.
        examples: Inputs at which both were run.

    Returns:
        The line; None where the model is no module or cannot be traced there.
    """
    if loaded.kind != "module":
        return None
    try:
        other = trace(loaded.module, _fixed(examples))
        found = _by_values(_Recorded(program, examples), _Recorded(other, _fixed(examples)))
        return found or _by_text(program, trace(loaded.module, examples))
    except Exception:  # then the line stays unnamed
        return None


def _fixed(examples: Examples) -> Examples:
    return Examples(tuple(replace(leaf, axes={}) for leaf in examples.leaves), examples.structure)


class _Recorded(Replay):
    """The last tensor of each place, as far as a program runs, and the last node that made it."""

    def __init__(self, program: ExportedProgram, examples: Examples) -> None:
        super().__init__(program)
        self.last: dict[_Place, tuple[torch.fx.Node, torch.Tensor]] = {}
        try:
            self.outputs(examples)
        except Exception:  # what it recorded before is what counts
            return

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        # A copy: what is written into a tensor later belongs to a later line. Memory with nothing in it says nothing.
        if n.op == "call_function" and isinstance(value, torch.Tensor) and "empty" not in str(n.target):
            self.last[_place(n)] = n, value.clone()
        return value


def _place(node: torch.fx.Node) -> _Place:
    modules = node.meta.get("nn_module_stack") or {}
    return str(node.meta.get("stack_trace")), str([path for path, _ in modules.values()])


def _by_values(program: _Recorded, model: _Recorded) -> Frame | None:
    for place, (node, value) in program.last.items():
        if place not in model.last:
            continue
        twin, wanted = model.last[place]
        if difference([wanted], [value], [""]):
            return line_of(_only_here(node, program, model) or _only_here(twin, model, program) or node)
    return None


def _only_here(node: torch.fx.Node, one: _Recorded, two: _Recorded) -> torch.fx.Node | None:
    """The earliest node that a node is computed from in one program by way of places that the other does not have."""
    earliest, here = None, _place(node)
    seen, open_ = {node}, [node]
    while open_:
        at = open_.pop()
        for source in at.all_input_nodes:
            place = _place(source)
            if source in seen or source.op != "call_function" or (place in two.last and place != here):
                continue
            seen.add(source)
            open_.append(source)
            if place in one.last and place != here and (earliest is None or source < earliest):
                earliest = source
    return earliest


def _by_text(program: ExportedProgram, model: ExportedProgram) -> Frame | None:
    """The first line whose nodes differ."""
    for signature in (_signature, _arguments):
        seen: set[Frame | None] = set()
        first, second = (_lines(of, signature) for of in (program, model))
        for one, two in itertools.zip_longest(first, second):
            if one is not None and two is not None and one[0] == two[0]:
                seen.add(line_of(one[1]))
                continue
            lines = [line_of(found[1]) for found in (one, two) if found is not None]
            # Where one trace goes on and the other goes round a loop again, the loop is what depends on the size.
            return next((line for line in lines if line and line in seen), lines[0])
    return None


def _lines(program: ExportedProgram, signature: Callable[[torch.fx.Node], str]) -> list[tuple[str, torch.fx.Node]]:
    """Each computing node with its signature."""
    return [
        (signature(node), node)
        for node in program.graph.nodes
        if node.op == "call_function" and not _is_bookkeeping(node)
    ]


def _is_bookkeeping(node: torch.fx.Node) -> bool:
    return node.target in ASSERTIONS or not isinstance(node.target, torch._ops.OpOverload)


def _signature(node: torch.fx.Node) -> str:
    """Operator and constant arguments of a node; of an attention neither: a single query needs no causal mask."""
    return "attention" if "attention" in str(node.target) else _arguments(node)


def _arguments(node: torch.fx.Node) -> str:
    """Operator and constant arguments of a node, names of other nodes left out."""
    constants = torch.fx.node.map_arg((node.args, node.kwargs), lambda _: "node")
    return f"{str(node.target).split('.')[-2:]} {constants}"
