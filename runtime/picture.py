"""A small drawing of a part of a graph, as plain data: what :func:`deployml.runtime.html.html_report` draws."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Picture", "PictureNode"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureNode:
    """One box.

    Attributes:
        op: What it says: an operator, or the name of a value at the border.
        detail: A second line: head count, output shape; may be empty.
        core: Whether it belongs to the attention itself.
        border: Whether it stands for a value that enters or leaves the picture.
    """

    op: str
    detail: str = ""
    core: bool = False
    border: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Boxes and the arrows between them.

    Attributes:
        title: What is shown.
        nodes: The boxes.
        edges: Pairs of positions in ``nodes``, producer first; free of cycles.
        left_out: How many nodes were left out to keep it readable.
    """

    title: str
    nodes: tuple[PictureNode, ...]
    edges: tuple[tuple[int, int], ...]
    left_out: int = 0

    @property
    def operators(self) -> int:
        """How many boxes are operators."""
        return sum(not n.border for n in self.nodes)
