"""Where the time of a graph goes: onnxruntime's own profile, added up by operator and by node."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from .flops import flops_of, packed_elements
from .report import NodeTime, OpTime, Profile
from .stats import median
from .tensors import to_ort

__all__ = ["profile", "read_profile"]

_RUNS: Final = 8
_WARM: Final = 3
#: Nodes of which the report keeps the numbers: the attention sites, and those that take the most time.
_KEPT: Final = 40
#: Nodes of less time are within the profiler's resolution, which is a microsecond.
_CLOCK_MS: Final = 0.05
_SUFFIX: Final = "_kernel_time"
_BYTES: Final[Mapping[str, int]] = {"double": 8, "int64": 8, "uint64": 8, "float16": 2, "bfloat16": 2, "int8": 1}


def profile(
    open_profiled: Callable[[str], onnxruntime.InferenceSession],
    named: Mapping[str, np.ndarray],
    *,
    sites: Sequence[str] = (),
    peak: tuple[float, float] | None = None,
) -> Profile:
    """Run a graph under onnxruntime's profiler and add up what it says.

    Args:
        open_profiled: Opens the session with profiling on, its file beginning with what it is given.
        named: Inputs.
        sites: Names of nodes to keep in any case.
        peak: Operations and bytes a second that the machine reaches.
    """
    with tempfile.TemporaryDirectory(prefix="deployml-profile-") as folder:
        session = open_profiled(str(Path(folder) / "run"))
        feeds = {name: to_ort(array) for name, array in named.items()}
        for _ in range(_WARM + _RUNS):
            session.run_with_ort_values(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8", errors="replace"))
    return read_profile(events, sites=sites, peak=peak)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A node in one run."""

    op: str
    seconds: float
    flops: int | None
    moved: int


def read_profile(
    events: Iterable[Mapping[str, Any]], *, sites: Sequence[str] = (), peak: tuple[float, float] | None = None
) -> Profile:
    """Add up the events of a profile file; of each node the median of its last runs counts."""
    runs: dict[str, list[_Seen]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            runs[name.removesuffix(_SUFFIX)].append(_seen(event))
    nodes = tuple(_node(name, seen) for name, seen in runs.items())
    total = sum(n.ms for n in nodes)
    kept = {n.name for n in sorted(nodes, key=lambda n: -n.ms)[:_KEPT]} | set(sites)
    known = [n.flops for n in nodes if n.flops is not None]
    return Profile(
        total_ms=total,
        flops=sum(known) if known else None,
        complete=len(known) == len(nodes),
        peak_flops=None if peak is None else max(peak[0], *(_rate(n) for n in nodes), 0.0),
        peak_bytes=None if peak is None else peak[1],
        ops=_by_op(nodes),
        nodes=tuple(n for n in nodes if n.name in kept),
    )


def _seen(event: Mapping[str, Any]) -> _Seen:
    args = event.get("args", {})
    op = str(args.get("op_name", "?"))
    inputs, outputs = _shapes(args.get("input_type_shape")), _shapes(args.get("output_type_shape"))
    moved = sum(int(args.get(f"{what}_size", 0) or 0) for what in ("activation", "parameter", "output"))
    moved += packed_elements(op, inputs, outputs) * _width(args.get("output_type_shape"))
    return _Seen(op, float(event.get("dur", 0)) * 1e-6, flops_of(op, inputs, outputs), moved)


def _shapes(typed: Any) -> list[list[int]]:
    return [list(shape) for entry in typed or () for shape in entry.values()]


def _width(typed: Any) -> int:
    kinds = [kind for entry in typed or () for kind in entry]
    return _BYTES.get(kinds[0], 4) if kinds else 4


def _node(name: str, seen: Sequence[_Seen]) -> NodeTime:
    """Profiles list a node once a run; runs at the start are warm-up."""
    last = seen[-min(len(seen), _RUNS) :]
    ms = median([s.seconds for s in last]) * 1e3
    return NodeTime(name=name, op=last[-1].op, ms=ms, flops=last[-1].flops, bytes=last[-1].moved)


def _rate(node: NodeTime) -> float:
    """Operations a second of a node that took long enough for the clock; on a busy machine one may beat the peak."""
    return (node.flops or 0) / node.ms * 1e3 if node.ms >= _CLOCK_MS else 0.0


def _by_op(nodes: Sequence[NodeTime]) -> tuple[OpTime, ...]:
    found: dict[str, list[NodeTime]] = defaultdict(list)
    for node in nodes:
        found[node.op].append(node)
    times = [
        OpTime(
            op=op,
            nodes=len(group),
            ms=math.fsum(n.ms for n in group),
            flops=None if any(n.flops is None for n in group) else sum(n.flops or 0 for n in group),
        )
        for op, group in found.items()
    ]
    return tuple(sorted(times, key=lambda t: (-t.ms, t.op)))
