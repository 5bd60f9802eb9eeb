"""The shipped cost table: what each operator that could hold an attention was measured to take.

``benchmarks/costs.py`` writes ``costs.json``; nothing is timed during an export, so the same model gives the same
graph. A site asks for the rows of its kind ("causal+mask") at its head size and lengths:

- A sequence axis of a fixed size takes the row nearest to it in ratio.
- An axis with a name counts as all of :data:`TYPICAL` alike: costs are compared by their geometric mean over them.
- The row whose head size is nearest in ratio stands for the site's; costs grow with heads and batch for all alike.

Operators that were not measured for a kind (and instruction sets and targets without rows) have no cost: the order of
kernel classes stands for them.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, Final

from ...runtime.isa import machine_isa
from ...runtime.target import Target
from .site import Site

__all__ = ["TYPICAL", "costs_of", "kind_of"]

#: Lengths that an axis without a fixed size is judged at.
TYPICAL: Final = (32, 64, 128, 256, 512)

Row = dict[str, Any]


def kind_of(site: Site) -> str | None:
    """The name of the site's kind in the table; None for kinds that only one kind of kernel does well."""
    found = site.kinds()
    if (
        found & {"softcap", "sink", "unequal_value", "float16", "grouped"}
        or site.node.weights is not None
        or not site.square
    ):
        return None
    parts = [part for part in ("causal", "mask", "bias") if part in found]
    return "+".join(parts) or "plain"


def costs_of(site: Site, target: Target) -> dict[str, float]:
    """Microseconds of each operator that was measured for sites like this one; empty where none was.

    Args:
        site: The attention.
        target: Its instruction set is that of ``--cpu-isa``, or of this machine.
    """
    kind = kind_of(site)
    if target.name != "cpu" or kind is None:
        return {}
    rows = [row for row in _table().get(target.cpu_isa or machine_isa(), ()) if row["kind"] == kind]
    if not rows:
        return {}
    size = min((row["head_size"] for row in rows), key=lambda found: (abs(math.log(found / site.head_size)), found))
    by_length = {row["length"]: row["microseconds"] for row in rows if row["head_size"] == size}
    taken = [by_length[length] for length in _lengths(site, sorted(by_length))]
    common = sorted(set(taken[0]).intersection(*taken))
    return {op: math.exp(sum(math.log(row[op]) for row in taken) / len(taken)) for op in common}


def _lengths(site: Site, known: list[int]) -> list[int]:
    """The measured lengths that the site is judged at."""
    assert site.node.query.shape is not None
    rows = site.node.query.shape[2]
    if isinstance(rows, int) and rows > 0:
        return [min(known, key=lambda length: (abs(math.log(length / rows)), length))]
    return [length for length in TYPICAL if length in known] or known


@functools.cache
def _table() -> dict[str, list[Row]]:
    """Rows by instruction set."""
    return json.loads(Path(__file__).with_name("costs.json").read_text(encoding="utf-8"))["isa"]
