"""The page docs/zoo.md: one row for each model and implementation, written by benchmarks/zoo_table.py."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .driver import Result
from .entry import Entry

__all__ = ["PAGE", "Row", "parse", "render", "row_of"]

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"

_HEAD: Final = """# The zoo

Tiny models with random weights (standard deviation 0.15) of many architectures, each exported with a dynamic batch
and, where it has one, a dynamic sequence, fused for the CPU and compared with eager float32 on shapes and paddings
that the trace did not see. `make zoo` runs all of them; `tests/zoo` holds the models. This page is written by
`python benchmarks/zoo_table.py`.

- sites: attentions of the model that became one node, of those it has.
- fused to: the operator of each (GQA, MHA are onnxruntime's; FlashAttention is the project's own, with what it reads).
- nodes: of the graph with plain attention, and of the fused one.
- error: the largest at real positions is below this share of the largest output.

| model | implementation | sites | fused to | nodes | error | remarks |
|---|---|---|---|---|---|---|
"""
_SHORT: Final = {"GroupQueryAttention": "GQA", "MultiHeadAttention": "MHA"}


@dataclass(frozen=True)
class Row:
    """One line of the table; every field is the text of its cell."""

    model: str
    impl: str
    sites: str
    operators: str
    nodes: str
    error: str
    remarks: str

    @property
    def form(self) -> tuple[str, str]:
        """What a run must find again: sites and operators. Node counts and errors may drift a little."""
        return self.sites, self.operators


def row_of(entry: Entry, impl: str, result: Result) -> Row:
    """The line of a run."""
    counts = Counter(_short(site.op) for site in result.sites if site.op is not None)
    reasons = sorted({site.reason for site in result.declined if site.reason is not None})
    return Row(
        entry.name,
        impl,
        f"{result.fused}/{len(result.sites)}",
        ", ".join(f"{count} {name}" for name, count in sorted(counts.items())),
        f"{result.unfused} → {result.nodes}",
        f"< 1e{math.ceil(math.log10(max(result.parity.real, 1e-9)))}",
        "; ".join(f"{reason}: {entry.declined.get(reason, 'unexpected')}" for reason in reasons),
    )


def _short(operator: str) -> str:
    name = operator.split("::")[-1]
    return _SHORT.get(name, name)


def parse(text: str) -> dict[tuple[str, str], Row]:
    """The rows of a page, by model and implementation."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 7 and cells[0] not in ("model", "---"):
            rows[cells[0], cells[1]] = Row(*cells)
    return rows


def render(rows: Iterable[Row]) -> str:
    """The whole page."""
    lines = (
        f"| {r.model} | {r.impl} | {r.sites} | {r.operators} | {r.nodes} | {r.error} | {r.remarks} |\n" for r in rows
    )
    return _HEAD + "".join(lines)
