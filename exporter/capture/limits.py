"""Upper limits of axes that come from a cache the model filled earlier: traced beyond, where the graph has no limit.

Code that keeps a table (an ALiBi bias, a causal mask, angles of a rotary embedding) and makes a new one where the old
one is too small asks ``table.shape[0] >= length``. Once the model was run, a trace at that length sees the table as
a constant and never the code that makes it: the graph holds up to the lengths of the run before it, which is no
property of the model. Traced at a longer input, the same code makes its table from the length. Whether the result
holds at shorter inputs too is not read from the code but tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from .inputs import Examples
from .lost_axes import lost_axes, merged_axes
from .outputs import Outputs, flatten_outputs
from .replay import Replay, difference
from .sizes import lowest_size
from .trace import quiet_run, trace, user_tensors

__all__ = ["agree", "trace_beyond_limits", "undeclared_limits"]

#: A limit further out than this is the model's own table and too long to be tried.
_FAR: Final = 1024


def undeclared_limits(program: ExportedProgram, examples: Examples) -> dict[str, int]:
    """Declared dynamic axes with an upper bound that nobody declared, by name."""
    declared = {axis.name for _, _, axis in examples.dynamic() if axis.high is not None}
    found: dict[str, int] = {}
    for name, bounds in _ranges(program, examples):
        if name not in declared and bounds.upper.is_Integer:
            found[name] = min(int(bounds.upper), found.get(name, int(bounds.upper)))
    return found


def trace_beyond_limits(
    module: torch.nn.Module, program: ExportedProgram, examples: Examples, outputs: Outputs, *, whole: bool = False
) -> ExportedProgram | None:
    """A program without the undeclared limits of another one, or with higher ones; None where the model has them.

    The longer trace is taken only when it equals the model beyond the limit, at the given sizes and at the smallest.

    Args:
        module: The model.
        program: Its trace at the given sizes.
        examples: Inputs and declared axes.
        outputs: Receives the names of the results.
        whole: Whether ``int`` of a size was a size in that trace.
    """
    limits = undeclared_limits(program, examples)
    if not limits or max(limits.values()) >= _FAR or any(axis.derived for _, _, axis in examples.dynamic()):
        return None
    longer = examples.resized({name: limit + 1 for name, limit in limits.items()})
    try:
        found = trace(module, longer, outputs, whole=whole)
    except Exception:  # the limit is the model's own
        return None
    if lost_axes(found, longer) or merged_axes(found, longer):
        return None
    left = undeclared_limits(found, longer)
    if any(left.get(name, _FAR) <= limit for name, limit in limits.items()):
        return None
    smallest = examples.resized({name: lowest_size(examples, name) for name in limits})
    if not (agree(module, found, longer) and agree(module, found, examples) and agree(module, found, smallest)):
        return None
    _widen(found, examples)
    return found


def agree(module: torch.nn.Module, program: ExportedProgram, examples: Examples) -> bool:
    """Whether a program equals the model at the sizes of the examples; False where one of the two does not run."""
    try:
        names, expected = zip(*flatten_outputs(quiet_run(module, examples))[0].items(), strict=True)
        return not difference(expected, Replay(program).outputs(examples), names)
    except Exception:  # one of the two does not run there
        return False


def _widen(program: ExportedProgram, examples: Examples) -> None:
    """Let axes begin where they were declared to, as was tried, and not beyond the limit."""
    for name, bounds in list(_ranges(program, examples)):
        low = lowest_size(examples, name)
        for symbol, known in program.range_constraints.items():
            if known is bounds and int(bounds.lower) > low:
                program.range_constraints[symbol] = ValueRanges(low, bounds.upper)


def _ranges(program: ExportedProgram, examples: Examples) -> Iterator[tuple[str, Any]]:
    for leaf, value in zip(examples.tensors, user_tensors(program), strict=True):
        for at, axis in leaf.axes.items():
            size = value.shape[at]
            bounds = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            if axis.name and bounds is not None:
                yield axis.name, bounds
