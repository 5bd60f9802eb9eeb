"""Running a captured program at sizes it was not traced at, against the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any, Final

import sympy
import torch
from torch.export import ExportedProgram

from ...runtime.errors import UnsupportedError
from ..loaded import Loaded
from ..source_map import Frame
from .baked import baked_line
from .captured import Captured
from .inputs import Examples, examples_of
from .lost_axes import fixed_axes
from .ones import sizes_beyond
from .outputs import flatten_outputs
from .quiet import quiet
from .replay import Replay, difference
from .sizes import axis_symbols, highest_size, lowest_size, sizes_made, unused_size
from .trace import quiet_run, user_tensors

__all__ = ["check_dynamic"]

#: What sizes are divided by, in the words of torch's symbolic shapes.
_DIVISIONS: Final = frozenset({"FloorDiv", "CleanDiv", "Mod", "PythonMod"})

#: Largest block that is tried, and how many of them.
_LARGEST_BLOCK: Final = 512
_TRIED: Final = 4

#: Largest cut that is tried beyond: a table of positions is often as long as this.
_LARGEST_CUT: Final = 512

_HINT: Final = (
    "Compute that value from the tensor's shape on every call (x.shape[1], no cached or Python-side copy; a loop over "
    "blocks is unrolled for as many as the example has), or give the axis bounds within which the graph holds: "
    "Dim(name, min=..., max=...)."
)


def check_dynamic(loaded: Loaded, captured: Captured) -> tuple[str, ...]:
    """Check that a captured program means the same as its model at sizes it was not traced at.

    Every dynamic axis is tried at another size, at the given one where the trace was at others, and, within its
    declared bounds, at size 1; where the model divides an axis into blocks, it is also tried at whole ones, because
    padding to them is a branch of its own, and where the program cuts an axis at numbers, beyond the last of them,
    because a loop over blocks was unrolled for as many as the examples have, and where a size that it computes (the
    frames of a convolution) was taken for a constant, where that is another. Sizes that the model itself refuses are
    left out. Costs two or three runs of the model and of the program on small inputs, and one for each axis, block, cut
    and such constant.

    Args:
        loaded: What was captured.
        captured: The result of :func:`deployml.exporter.capture.capture`.

    Returns:
        Sentences to show to the user; one when nothing could be compared.

    Raises:
        UnsupportedError: a traced size or branch is baked into the program; the line is named where it is found.
    """
    if loaded.kind == "program" or not captured.dynamic_axes:
        return ()
    with quiet():
        examples = _named(examples_of(loaded), captured)
        runner = Replay(captured.program)
        compared = [_compare(loaded, captured, runner, variant) for variant in _variants(examples, captured)]
        if compared and not any(compared):  # a model that wants multiples of something
            compared = [_compare(loaded, captured, runner, _doubled(examples))]
    if compared and not any(compared):
        return ("The model ran at no size but the one given, so its dynamic axes are unchecked.",)
    return ()


def _named(examples: Examples, captured: Captured) -> Examples:
    """The examples with a name for each axis that varies: hints such as ``Dim.AUTO`` have none of their own."""
    leaves = []
    for leaf in examples.leaves:
        found = captured.dynamic_axes.get(leaf.name, {})
        axes = {at: replace(axis, name=axis.name or found.get(at, "")) for at, axis in leaf.axes.items()}
        leaves.append(replace(leaf, axes=axes))
    return Examples(tuple(leaves), examples.structure)


def _variants(examples: Examples, captured: Captured) -> Iterator[Examples]:
    given = examples.sizes()
    if not given:
        return
    taken = set().union(*(sizes_made(examples, name, size) for name, size in given.items()))
    other: dict[str, int] = {}
    for name, size in given.items():
        other[name] = unused_size(examples, name, size, taken)
        taken |= sizes_made(examples, name, other[name])
    yield examples.resized(other)
    if _traced_elsewhere(captured.program, examples):  # a branch may be taken at the given sizes alone
        yield examples
    lowest = {name: lowest_size(examples, name) for name in given}
    if lowest != given:
        yield examples.resized(lowest)
    for name, block in _divided(captured.program, examples):
        size = _whole_blocks(examples, name, block)
        if size is not None:
            yield examples.resized({**given, name: size})
    for name, cut in _cuts(captured.program, examples).items():
        if cut >= max(given[name], other[name]) and cut < highest_size(examples, name):
            yield examples.resized({**given, name: cut + 1})
    for beyond in sizes_beyond(captured.program, examples):
        yield examples.resized({**given, **beyond})


def _traced_elsewhere(program: ExportedProgram, examples: Examples) -> bool:
    """Whether a program was traced at other sizes than those of the examples."""
    return any(
        isinstance(size := value.shape[at], torch.SymInt) and size.node.hint != leaf.value.shape[at]
        for leaf, value in zip(examples.tensors, user_tensors(program), strict=True)
        for at in leaf.axes
    )


def _divided(program: ExportedProgram, examples: Examples) -> list[tuple[str, int]]:
    """Dynamic axes and what the program divides them by, smallest blocks first."""
    names = axis_symbols(program, examples)
    found = {
        (int(call.args[1]), names[symbol])
        for call in _calls(program, _DIVISIONS)
        if call.args[1].is_Integer and 1 < call.args[1] <= _LARGEST_BLOCK
        for symbol in call.args[0].free_symbols & names.keys()
    }
    return [(name, block) for block, name in sorted(found)[:_TRIED]]


def _cuts(program: ExportedProgram, examples: Examples) -> dict[str, int]:
    """Dynamic axes that the program cuts at numbers, each with the largest of them that is worth a run."""
    found: dict[str, int] = {}
    for symbol, name in axis_symbols(program, examples).items():
        ends = (end for call in _calls(program, {"Min"}) if symbol in call.args for end in call.args if end.is_Integer)
        found[name] = max((int(end) for end in ends if end <= _LARGEST_CUT), default=0)
    return found


def _calls(program: ExportedProgram, names: Set[str]) -> set[Any]:
    """The functions of those names in the sizes of a program; torch's own are sympy expressions of several bases."""
    sizes = {size.node.expr for node in program.graph.nodes for size in _symbolic(node.meta.get("val"))}
    return {part for size in sizes for part in sympy.preorder_traversal(size) if type(part).__name__ in names}


def _whole_blocks(examples: Examples, name: str, block: int) -> int | None:
    """The smallest whole number of blocks, other than the given size, that an axis is declared to take."""
    first = -(-lowest_size(examples, name) // block) * block
    size = next(n for n in (first, first + block) if n != examples.sizes()[name])
    return size if size <= highest_size(examples, name) else None


def _symbolic(value: object) -> list[torch.SymInt]:
    sizes = value.shape if isinstance(value, torch.Tensor) else [value]
    return [size for size in sizes if isinstance(size, torch.SymInt)]


def _doubled(examples: Examples) -> Examples:
    return examples.resized({name: 2 * size for name, size in examples.sizes().items()})


def _compare(loaded: Loaded, captured: Captured, runner: Replay, examples: Examples) -> bool:
    """Compare at one set of sizes; False when the model itself does not run there."""
    try:
        expected = list(flatten_outputs(quiet_run(loaded.module, examples))[0].values())
    except Exception:  # the model's own limit, not the program's
        return False
    try:
        found = runner.outputs(examples)
    except Exception as error:  # whatever the baked-in size leads to
        failed_at = runner.frame()
        reason = str(error).strip().splitlines() or [type(error).__name__]
        frame = baked_line(loaded, captured.program, examples) or failed_at
        raise _error(loaded, examples, f"it fails ({reason[0][:160]})", frame) from error
    differs = difference(expected, found, captured.output_names)
    if differs:
        given = examples.sizes() == _named(examples_of(loaded), captured).sizes()
        frame = (_fixing_line(loaded, examples) if given else None) or baked_line(loaded, captured.program, examples)
        raise _error(loaded, examples, differs, frame)
    return True


def _error(loaded: Loaded, examples: Examples, finding: str, frame: Frame | None) -> UnsupportedError:
    sizes = ", ".join(f"{name}={size}" for name, size in examples.sizes().items())
    line = f" The line `{frame.code}` depends on the size it was traced at." if frame and frame.code else ""
    return UnsupportedError(
        f"The traced form of '{loaded.name}' does not hold at {sizes}: {finding}.{line}",
        hint=_HINT,
        where=frame.where if frame else None,
    )


def _fixing_line(loaded: Loaded, examples: Examples) -> Frame | None:
    """The line that fixes an axis where the model is traced at these sizes: a comparison with a size it keeps."""
    return next((lost.frame for lost in fixed_axes(loaded.module, examples) if lost.frame), None)
