"""Regions that change nothing in inference: put back among the lines they stand between.

torch.export wraps the lines under ``torch.no_grad()`` and ``torch.autocast(..., enabled=False)`` into a graph of their
own and, when it opens that graph again, writes every node to a line of generated code: the model's line is lost.
"""

from __future__ import annotations

import itertools
import operator
from typing import Final

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

__all__ = ["open_idle_regions"]

_GRADIENTS: Final = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST: Final = torch.ops.higher_order.wrap_with_autocast


def open_idle_regions(program: ExportedProgram) -> None:
    """Inline regions of ``set_grad_enabled`` and of disabled ``autocast``, nested ones too, in place.

    A region of an autocast that is on casts what runs in it, and is left with all that it holds.
    """
    owner = program.graph_module
    opened = False
    while region := next((node for node in owner.graph.nodes if _is_idle(node)), None):
        _inline(program, region)
        opened = True
    if opened:
        owner.delete_all_unused_submodules()
        owner.recompile()


def _is_idle(node: Node) -> bool:
    return node.target is _GRADIENTS or (node.target is _AUTOCAST and not node.args[2])


def _inline(program: ExportedProgram, region: Node) -> None:
    owner = program.graph_module
    at = next(index for index, arg in enumerate(region.args) if isinstance(arg, Node) and arg.op == "get_attr")
    body_node = region.args[at]
    assert isinstance(body_node, Node)
    body = owner.get_submodule(str(body_node.target))
    assert isinstance(body, GraphModule)
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    copied = dict(zip(placeholders, region.args[at + 1 :], strict=True))
    with owner.graph.inserting_before(region):
        for node in body.graph.nodes:
            if node.op in ("placeholder", "output"):
                continue
            copied[node] = owner.graph.node_copy(node, lambda other: copied[other])
            if node.op == "get_attr":
                copied[node].target = _carried(owner, body, str(node.target))
    results = torch.fx.node.map_arg(body.graph.output_node().args[0], lambda node: copied[node])
    for user in list(region.users):
        assert user.target is operator.getitem
        _replace(program, user, results[user.args[1]])
    owner.graph.erase_node(region)
    if not body_node.users:
        owner.graph.erase_node(body_node)


def _carried(owner: GraphModule, body: GraphModule, name: str) -> str:
    """Hand what a region's graph keeps (a nested region, a constant) to the graph around it; its name there."""
    free = next(found for n in itertools.count() if not hasattr(owner, found := f"{name}_of_region_{n}"))
    setattr(owner, free, getattr(body, name))
    return free


def _replace(program: ExportedProgram, old: Node, new: Node) -> None:
    old.replace_all_uses_with(new)
    program.graph_signature.replace_all_uses(old.name, new.name)
    program.graph_module.graph.erase_node(old)
