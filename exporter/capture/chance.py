"""Refusing a model whose result is drawn anew on every call: there is nothing a graph could be compared with."""

from __future__ import annotations

from typing import Final

import torch
from torch.export import ExportedProgram

from ...runtime.errors import UnsupportedError
from ..source_map import Frame
from .inputs import Examples
from .replay import Replay, difference, line_of

__all__ = ["refuse_chance"]

_TRAINING: Final = "Dropout is on in eval mode: pass training=self.training to F.dropout, or use nn.Dropout."
_DRAWN: Final = "Give forward what it draws as an input, or turn it off in the configuration, and export again."


def refuse_chance(program: ExportedProgram, examples: Examples, name: str) -> None:
    """Refuse a program that draws random numbers which reach its outputs.

    The program runs twice where it has an operator that draws; draws that change nothing (noise of scale 0) pass.

    Args:
        program: A captured program.
        examples: Inputs to run it on.
        name: Of the model, for the message.

    Raises:
        UnsupportedError: two runs differ; the lines that draw are named.
    """
    drawing = [node for node in program.graph.nodes if _draws(node)]
    if not drawing:
        return
    with torch.random.fork_rng(devices=()):
        first, second = (Replay(program).outputs(examples) for _ in range(2))
    if not difference(first, second, [str(number) for number in range(len(first))]):
        return
    lines: dict[str, Frame] = {f.where: f for f in map(line_of, drawing) if f is not None}
    code = f" in the line `{next(iter(lines.values())).code}`" if lines else ""
    raise UnsupportedError(
        f"'{name}' draws random numbers{code}, so that no two runs of it agree.",
        hint=_TRAINING if any("dropout" in str(node.target) for node in drawing) else _DRAWN,
        where=", ".join(list(lines)[:3]) or None,
    )


def _draws(node: torch.fx.Node) -> bool:
    """Whether a node draws random numbers; attention does only with dropout, which is refused elsewhere."""
    if not isinstance(node.target, torch._ops.OpOverload) or "attention" in str(node.target):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs
    return given.get("train", given.get("training", True)) is not False and given.get("p", 1.0) != 0
