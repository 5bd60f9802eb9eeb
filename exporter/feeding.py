"""What to feed a graph: its inputs with roles and bounds, read from the graph itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from ..passes.graph import dims, op_name
from ..runtime.errors import UnsupportedError
from ..runtime.feeds import (
    Case,
    InputSpec,
    MaskKind,
    Role,
    beyond,
    draw,
    elements,
    grid,
    is_called_batch,
    role_of,
    root_symbols,
)
from ..runtime.reach import Limits

__all__ = ["bench_cases", "input_specs", "parity_cases"]

#: Operators that pass integer values on unchanged, for the way from an input to the table it indexes.
_PASS_ON: Final = frozenset({"Cast", "Unsqueeze", "Squeeze", "Reshape", "Identity", "Slice", "Expand", "Transpose"})
_MAX_STEPS: Final = 12

#: A float mask with values this low is added to scores; 0 and 1 are not.
_ADDITIVE: Final = -1e3

#: Sizes of the run that is timed, where the model leaves a choice.
_BENCH_BATCH: Final = 1
_BENCH_LENGTHS: Final = (128, 64, 32, 16, 8, 2)
#: Inputs with more elements are not timed, where there are smaller ones: a wish is no order.
_MOST_ELEMENTS: Final = 1 << 24


def input_specs(
    model: ir.Model, *, examples: Mapping[str, np.ndarray] | None = None, bound: int | None = None
) -> tuple[InputSpec, ...]:
    """Describe a graph's inputs.

    Args:
        model: The graph.
        examples: Values the user (or the config) gave, by input name; they tell additive masks from others.
        bound: Bound of integer inputs for which the graph shows none.

    Raises:
        UnsupportedError: if an input has no known rank or no tensor type.
    """
    weights = model.graph.initializers
    inputs = [value for value in model.graph.inputs if value.name not in weights]
    return tuple(_spec(value, (examples or {}).get(str(value.name)), bound) for value in inputs)


def parity_cases(
    specs: Sequence[InputSpec], limits: Limits | None = None, *, traced: Mapping[str, int] | None = None
) -> tuple[Case, ...]:
    """The grid of shapes and masks to compare on; see :func:`deployml.runtime.feeds.grid`."""
    kinds: tuple[MaskKind, ...] = ("full", "right", "left", "holes", "mixed", "one-token")
    return grid(specs, traced=traced, limits=limits, masks=kinds)


def bench_cases(
    specs: Sequence[InputSpec], limits: Limits | None = None, *, traced: Mapping[str, int] | None = None
) -> tuple[Case, ...]:
    """Inputs for timing, the wish first: one row of 128 positions, and shorter ones for models that end earlier.

    An axis whose least size lies above the wish has the size of the example, or one in proportion to its least.
    """
    roots = root_symbols(specs)
    batch = next((name for name, is_batch in roots if is_batch and is_called_batch(name)), None)
    wishes = [
        {
            name: _bench_size(
                _BENCH_BATCH if name == batch else length, (limits or {}).get(name, (1, None)), (traced or {}).get(name)
            )
            for name, _ in roots
        }
        for length in (_BENCH_LENGTHS if roots else (1,))
    ]
    small = [sizes for sizes in wishes if elements((spec.shape for spec in specs), sizes) <= _MOST_ELEMENTS]
    found: dict[str, Case] = {}
    for sizes in small or wishes[-1:]:
        case = draw(specs, sizes)
        found.setdefault(case.name, case)
    return tuple(found.values())


def _bench_size(wish: int, limit: tuple[int, int | None], shown: int | None) -> int:
    low, high = limit
    if wish == _BENCH_BATCH or wish >= low:
        return max(low, wish if high is None else min(wish, high))
    return shown if shown is not None and shown > low else beyond(wish, limit)


def _spec(value: ir.Value, example: np.ndarray | None, bound: int | None) -> InputSpec:
    shape, dtype = dims(value), value.dtype
    if shape is None or dtype is None or dtype == ir.DataType.STRING:
        raise UnsupportedError(
            f"input '{value.name}' has no number type or no known rank",
            hint="give the model typed inputs, or skip the checks with --no-validate --no-bench",
        )
    name = str(value.name)
    axes = tuple(f"{name}_{axis}" if dim is None else dim for axis, dim in enumerate(shape))
    return InputSpec(
        name=name,
        dtype=_numpy_name(dtype),
        shape=axes,
        role=_role(name, _numpy_name(dtype), example),
        bound=_table_rows(value) or (bound if dtype.is_integer() else None),
        marks=_marks(value) if dtype.is_integer() else (),
    )


def _numpy_name(dtype: ir.DataType) -> str:
    return dtype.numpy().name


def _role(name: str, dtype: str, example: np.ndarray | None) -> Role:
    guess = role_of(name, dtype)
    is_float = dtype not in ("bool",) and not dtype.startswith(("int", "uint"))
    if guess == "attention-mask" and is_float and example is not None and bool((example <= _ADDITIVE).any()):
        return "additive-mask"
    if guess in ("attention-mask", "key-padding-mask") and "pad" in name.lower() and example is not None:
        return _by_majority(example) or guess  # libraries mean either by the name; most positions are real
    return guess


def _by_majority(mask: np.ndarray) -> Role | None:
    ones = 2 * int(np.count_nonzero(mask))
    return None if ones == mask.size else "attention-mask" if ones > mask.size else "key-padding-mask"


def _marks(value: ir.Value) -> tuple[int, ...]:
    """The numbers that an integer input is compared with, to be found or left out where it equals them."""
    found: set[int] = set()
    ahead, seen = [value], set[ir.Value]()
    for _ in range(_MAX_STEPS):
        seen.update(ahead)
        uses = [use for v in ahead for use in v.uses()]
        for use in uses:
            other = use.node.inputs[1 - use.idx] if op_name(use.node) == "Equal" else None
            number = None if other is None else ir.convenience.get_const_tensor(other)
            if number is not None and number.size == 1:
                found.add(int(number.numpy().reshape(-1)[0]))
        onward = [u.node.outputs[0] for u in uses if op_name(u.node) in _PASS_ON and u.idx == 0]
        ahead = [v for v in onward if v not in seen]
    return tuple(sorted(found))


def _table_rows(value: ir.Value) -> int | None:
    """The smallest table that an integer input indexes: its embedding. None when no Gather is reached.

    What is added on the way (the first row of each field's part of one table) is taken off.
    """
    if value.dtype is None or not value.dtype.is_integer():
        return None
    rows: list[int] = []
    seen: set[ir.Value] = set()
    ahead = [(value, 0)]
    for _ in range(_MAX_STEPS):
        ahead = [found for v, added in ahead for found in _onward(v, added, rows) if found[0] not in seen]
        seen.update(v for v, _ in ahead)
    return min(rows, default=None)


def _onward(value: ir.Value, added: int, rows: list[int]) -> Iterable[tuple[ir.Value, int]]:
    for use in value.uses():
        node = use.node
        if op_name(node) == "Gather" and use.idx == 1:
            table = dims(node.inputs[0])
            axis = node.attributes.get_int("axis", 0)
            size = table[axis] if table else None
            is_weight = node.inputs[0] is not None and node.inputs[0].is_initializer()
            if isinstance(size, int) and is_weight and size > added:
                rows.append(size - added)
        elif op_name(node) in (*_PASS_ON, "Gather") and use.idx == 0:
            yield node.outputs[0], added
        elif op_name(node) == "Add" and len(node.inputs) == 2:
            other = node.inputs[1 - use.idx]
            offsets = None if other is None else ir.convenience.get_const_tensor(other)
            if offsets is not None and offsets.size and offsets.dtype.is_integer():
                yield node.outputs[0], added + max(0, int(offsets.numpy().max()))
