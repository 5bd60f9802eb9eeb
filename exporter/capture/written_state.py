"""Finding the buffers that a traced program reads and writes: what it keeps from one call for the next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

__all__ = ["state_notes", "written_state"]

_STATE: Final = frozenset({InputKind.BUFFER, InputKind.PARAMETER, InputKind.CONSTANT_TENSOR})

#: So many names are shown.
_SHOWN: Final = 4


def state_notes(program: ExportedProgram) -> tuple[str, ...]:
    """A sentence for the user where a program keeps something for its next call; no ONNX graph does."""
    names = written_state(program)
    if not names:
        return ()
    shown = [f"'{name}'" for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        shown.append(f"{len(names) - _SHOWN} more")
    return (
        f"The model writes into {', '.join(shown)} when it is called. The graph computes each call from the values at "
        "the export and keeps no updates, so later calls of the model differ. Take the old value as an input of "
        "forward and return the new one as an output.",
    )


def written_state(program: ExportedProgram) -> list[str]:
    """Names of the buffers, parameters and tensor attributes whose old value a program reads and replaces.

    One that is only replaced (a table made anew for longer inputs) means nothing to the next call.
    """
    state = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind in _STATE}
    replaced = set(program.graph_signature.buffers_to_mutate.values())  # of programs that were decomposed
    return [
        str(state[node.name])
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in state
        if _is_written(node, str(state[node.name]) in replaced)
    ]


def _is_written(node: torch.fx.Node, replaced: bool) -> bool:
    read = written = False
    for alias in _views(node):
        for user in alias.users:
            fills = user.target is torch.ops.aten.copy_.default and user.args[0] is alias
            written = written or _writes(user, alias)
            read = read or (not fills and user.op != "output")
    return read and (written or replaced)


def _views(node: torch.fx.Node) -> Iterator[torch.fx.Node]:
    """A node and what shares its memory: a cache is written at a place of it."""
    seen = {node}
    pending = [node]
    while pending:
        alias = pending.pop()
        yield alias
        found = [user for user in alias.users if user not in seen and _is_view(user, alias)]
        seen.update(found)
        pending.extend(found)


def _is_view(user: torch.fx.Node, alias: torch.fx.Node) -> bool:
    return any(argument.alias_info is not None for argument in _taking(user, alias))


def _writes(user: torch.fx.Node, alias: torch.fx.Node) -> bool:
    return any(argument.alias_info is not None and argument.alias_info.is_write for argument in _taking(user, alias))


def _taking(user: torch.fx.Node, alias: torch.fx.Node) -> list[Any]:
    """The parameters through which an operator takes a tensor."""
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return []
    given = dict(zip((argument.name for argument in schema.arguments), user.args, strict=False)) | dict(user.kwargs)
    return [argument for argument in schema.arguments if given.get(argument.name) is alias]
