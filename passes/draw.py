"""Random inputs for proofs: sizes for symbolic dimensions, numbers, flags and padding patterns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import ml_dtypes
import numpy as np
import onnx_ir as ir

from .graph import constant
from .notable import Ids, notable, takes_ids
from .rule import Draw
from .sizes import Dim, apply_ties, tied
from .symbols import free_names, size_of

__all__ = ["SIZES", "Plan", "bind", "can_be", "dims_of", "enlarged", "level_plans", "plans", "random_feeds"]

#: Sizes given to symbols in order of appearance: odd, prime, unequal. Of two lengths each is once the longer one: there
#: are rows without keys, under some masks, only where keys are fewer than queries.
SIZES: Final = ((2, 5, 7, 3, 11, 4), (7, 6, 3, 5, 4, 2), (1, 1, 1, 1, 1, 1))

#: Case numbers: one whose padding pattern is an empty row, for size 1, one with lengths of every size, and one with
#: lengths and offsets beyond every size there is: keys may be more than any axis of the inputs is long.
_EMPTY, _LENGTHS, _BEYOND = 4, 3, 5
#: Rows of the batch in the one case that shows many padding patterns: several of each kind.
_MANY: Final = 24

#: Size of symbols that are all given one: larger than the integers that are taken for plain numbers.
_LEVEL: Final = 4

#: Integers between these two in a sub-graph may be windows, blocks or bucket counts: sizes must exceed them once.
_SHORT: Final = 3
_LONG: Final = 512
#: How many of them decide a case.
_TELLING: Final = 4
#: A length that no case reaches.
_FAR: Final = 1 << 12
#: No symbol is raised beyond this to keep what is computed from it from being empty.
_LIMIT: Final = 1 << 14

#: Weights of more numbers than this, a prime, repeat them: no row of a weight is another's then.
_BLOCK: Final = 1_048_583

#: No value is drawn in a way of its own.
_USUAL: Final[Mapping[int, Draw]] = {}


@dataclass(frozen=True, slots=True)
class Plan:
    """One case of a proof: sizes by symbol, the number that picks its padding patterns, and ids in their place."""

    sizes: dict[str, int]
    case: int
    ids: Ids | None = None


def plans(values: Sequence[ir.Value], nodes: Iterable[ir.Node], constants: Iterable[ir.Value]) -> list[Plan]:
    """The cases of a proof.

    Args:
        values: The free inputs.
        nodes: Nodes of both forms: what they compute together ties axes of different names (see :mod:`.sizes`).
        constants: Constants of both forms; small integers among them, windows and ends of tables, decide longer cases.
    """
    nodes = list(nodes)
    ties, dims = tied(nodes, _symbols(values)), [*dims_of(values), *dims_of(o for n in nodes for o in n.outputs)]
    cases = [Plan(apply_ties(ties, bind(values, sizes)), number) for number, sizes in enumerate(SIZES)]
    cases.append(Plan(apply_ties(ties, bind(values, SIZES[-1])), _EMPTY))
    wider = [Plan(apply_ties(ties, enlarged(plan.sizes, dims)), plan.case) for plan in cases]
    cases = [plan for plan in cases if can_be(plan.sizes, dims)]
    cases.extend(plan for plan in wider if plan not in cases)
    if any(_is_pattern(value) for value in values):
        many = apply_ties(ties, _batched(values, _MANY))
        cases.extend(plan for plan in (Plan(many, 1), Plan(many, 2)) if can_be(plan.sizes, dims))
    if any(_is_length(value) for value in values):
        cases.extend(Plan(plan.sizes, _BEYOND) for plan in cases[:1])
    numbers = sorted({n for c in constants for n in _integers(c) if _SHORT < n <= _LONG})
    sizes = [_long(values, numbers[-1] + 3)] if numbers else []
    sizes += [each for n in _telling(numbers) for each in _uneven(values, n + 3)]
    sizes += [each for n in (_SHORT, *_telling(numbers)) for each in _drifted(values, dims, n + 1)]
    longer = (Plan(_that_can_be(ties, each, dims), _LENGTHS) for each in sizes)
    cases.extend(plan for plan in longer if plan not in cases)
    ids = notable(values, nodes)
    if ids is not None:
        many = Plan(apply_ties(ties, _batched(values, _MANY)), 0)
        cases.extend(Plan(plan.sizes, 0, ids) for plan in (*cases[:1], many) if can_be(plan.sizes, dims))
    return cases


def _that_can_be(ties: Mapping[str, Dim], sizes: dict[str, int], dims: Sequence[ir.SymbolicDim]) -> dict[str, int]:
    """Tied sizes, raised where a convolution or a slice would not run at them."""
    given = apply_ties(ties, sizes)
    return given if can_be(given, dims) else apply_ties(ties, enlarged(given, dims))


def level_plans(values: Sequence[ir.Value], nodes: Iterable[ir.Node]) -> list[Plan]:
    """Cases in which all symbols have one size, and all but batches: what meets anywhere fits together."""
    nodes = list(nodes)
    ties, inner, names = tied(nodes, _symbols(values)), _inner(values), _symbols(values)
    every = dict.fromkeys(names, _LEVEL)
    apart = {name: _LEVEL if name in inner else _LEVEL - 1 for name in names}
    return [Plan(apply_ties(ties, sizes), 0) for sizes in (apart, every)]


def bind(values: Sequence[ir.Value], sizes: Sequence[int]) -> dict[str, int]:
    """Sizes for the symbols of some values, in order of appearance."""
    return dict(zip(_symbols(values), itertools.cycle(sizes), strict=False))


def dims_of(values: Iterable[ir.Value]) -> list[ir.SymbolicDim]:
    """The symbolic dimensions of some values, each once."""
    found = {d.value: d for v in values for d in v.shape or () if isinstance(d, ir.SymbolicDim) and d.value is not None}
    return list(found.values())


def can_be(sizes: Mapping[str, int], dims: Iterable[ir.SymbolicDim]) -> bool:
    """Whether no dimension is empty that would even be negative at smaller sizes.

    Such a one comes from a convolution or a slice that does not run there.
    """
    for dim in dims:
        names = free_names(dim)
        if not names or dim.value in names or not all(name in sizes for name in names):
            continue
        if size_of(dim, sizes) < 1 and size_of(dim, dict.fromkeys(names, 1)) < 0:
            return False
    return True


def enlarged(sizes: Mapping[str, int], dims: Iterable[ir.SymbolicDim]) -> dict[str, int]:
    """Sizes at which no dimension is empty or negative, as far as raising one symbol at a time gets there.

    Convolutions shorten a sequence, so a small number of samples leaves no frame at all: such a symbol is raised
    until what is computed from it has the size that was meant for the symbol.
    """
    raised = dict(sizes)
    for dim in dims:
        names = free_names(dim)
        if len(names) != 1 or names[0] not in sizes or dim.value == names[0]:
            continue
        name, wanted = names[0], sizes[names[0]]
        if size_of(dim, raised) >= 1:
            continue
        raised[name] = _raised(dim, name, wanted) or raised[name]
    return raised


def _raised(dim: ir.SymbolicDim, name: str, wanted: int) -> int | None:
    """The smallest size of a symbol at which a dimension that grows with it reaches a size; None beyond a limit."""
    high = wanted
    while size_of(dim, {name: high}) < wanted:
        high *= 2
        if high > _LIMIT:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size_of(dim, {name: middle}) < wanted else (low, middle)
    return high


def _symbols(values: Sequence[ir.Value]) -> list[str]:
    found: dict[str, None] = {}
    for value in values:
        for dim in value.shape or ():
            if not isinstance(dim, int):
                found.update(dict.fromkeys(free_names(dim)))
    return list(found)


def _is_pattern(value: ir.Value) -> bool:
    """Whether a value may say which keys of which rows take part."""
    return value.dtype is not None and not value.dtype.is_floating_point() and len(value.shape or ()) >= 2


def _is_length(value: ir.Value) -> bool:
    """Whether a value may be a length or an offset, or one for each sequence."""
    return value.dtype is not None and value.dtype.is_integer() and len(value.shape or ()) <= 1


def _batched(values: Sequence[ir.Value], batch: int) -> dict[str, int]:
    """Symbols that only ever lead a shape get ``batch``, the others small sizes."""
    inner, sizes = _inner(values), itertools.cycle(SIZES[0][1:])
    return {name: next(sizes) if name in inner else batch for name in _symbols(values)}


def _long(values: Sequence[ir.Value], size: int) -> dict[str, int]:
    """Symbols that only ever lead a shape (batches) get 1, all others ``size``."""
    inner = _inner(values)
    return {name: size if name in inner else 1 for name in _symbols(values)}


def _uneven(values: Sequence[ir.Value], size: int) -> list[dict[str, int]]:
    """Where there are two lengths or more: one of them so long that the others are out of its reach, each in turn."""
    inner = [name for name in _symbols(values) if name in _inner(values)]
    if len(inner) < 2:
        return []
    plain = dict.fromkeys(_symbols(values), 1) | dict.fromkeys(inner, _LEVEL)
    return [plain | {name: size + _LEVEL} for name in inner[:2]]


def _drifted(values: Sequence[ir.Value], dims: Iterable[ir.SymbolicDim], reach: int) -> list[dict[str, int]]:
    """Where one length is computed from another (pooled keys): so long that the ends are out of each other's reach."""
    inner, found = _inner(values), dict[str, int]()
    for dim in dims:
        names = free_names(dim)
        if len(names) != 1 or names[0] not in inner or dim.value == names[0]:
            continue
        size = next((n for n in _growing(reach) if abs(size_of(dim, {names[0]: n}) - n) > reach), 0)
        found[names[0]] = max(size, found.get(names[0], 0))
    plain = {name: _LEVEL if name in inner else 1 for name in _symbols(values)}
    return [plain | {name: size} for name, size in found.items() if size]


def _growing(size: int) -> Iterable[int]:
    """Sizes up to eight times the first: lengths that grow at unlike rates are apart by then, others never are."""
    last = 8 * size
    while size <= last:
        yield size
        size += max(1, size // 8)


def _telling(numbers: Sequence[int]) -> Sequence[int]:
    """Of sorted numbers the largest and the smallest: tables end at some of them, and no longer case runs there."""
    return (*numbers[: _TELLING - 1], *numbers[_TELLING - 1 :][-1:])


def _inner(values: Sequence[ir.Value]) -> set[str]:
    """Symbols that stand anywhere but first in a shape."""
    inner: set[str] = set()
    for value in values:
        dims = list(value.shape or ())
        for dim in dims if len(dims) < 2 else dims[1:]:
            if not isinstance(dim, int):
                inner.update(free_names(dim))
    return inner


def _integers(value: ir.Value) -> list[int]:
    if value.dtype is None or not value.dtype.is_integer():
        return []
    array = constant(value, limit=1)
    return [] if array is None or array.size != 1 else [abs(int(array.reshape(-1)[0]))]


def random_feeds(
    values: Sequence[ir.Value],
    sizes: Mapping[str, int],
    rng: np.random.Generator,
    case: int,
    forbidding: Sequence[ir.Value] = (),
    ids: Ids | None = None,
    draws: Mapping[int, Draw] = _USUAL,
) -> dict[str, np.ndarray]:
    """Random arrays for values, under ``i0``, ``i1``, ...: normal floats, padding patterns, small integers.

    Floats among ``forbidding`` get minus infinity (the lowest number, in every other case) in padding patterns.
    Integers are drawn from ``ids``, where they are given, in the place of patterns. Values in ``draws``, by their
    ``id``, are drawn as it says.
    Patterns and integers do not depend on which floats are drawn beside them: a rewrite that is wrong for a pattern
    stays wrong when the proof asks again with other floats free.
    """
    masks = {id(v) for v in forbidding}
    unknown = itertools.cycle(SIZES[case % len(SIZES)])
    feeds = {}
    patterns = itertools.count()
    for index, value in enumerate(values):
        assert value.shape is not None and value.dtype is not None
        shape = []
        for dim in value.shape:
            if isinstance(dim, int):
                shape.append(dim)
            else:
                shape.append(max(size_of(dim, sizes), 0) if free_names(dim) else next(unknown))
        free_float = value.dtype.is_floating_point() and id(value) not in masks
        marks = rng if free_float else np.random.default_rng([case, next(patterns)])
        if id(value) in draws:
            feeds[f"i{index}"] = _drawn(draws[id(value)], value.dtype, shape, marks)
            continue
        if ids is not None and takes_ids(value) and 0 not in shape:
            feeds[f"i{index}"] = ids.draw(value, shape, sizes, marks)
            continue
        drawn = _random(value, tuple(shape), marks, case, max(sizes.values(), default=1))
        if id(value) in masks:
            low = ml_dtypes.finfo(drawn.dtype).min if case % 2 else -np.inf
            drawn = np.where(_padding(drawn.shape, marks, case) > 0, drawn, drawn.dtype.type(low))
        feeds[f"i{index}"] = drawn
    return feeds


def _drawn(draw: Draw, dtype: ir.DataType, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    if draw.below is not None and draw.distinct:
        order = rng.permuted(np.broadcast_to(np.arange(draw.below), (*shape[:-1], draw.below)), axis=-1)
        return order[..., : shape[-1]].astype(dtype.numpy())
    if draw.below is not None:
        return rng.integers(0, draw.below, shape).astype(dtype.numpy())
    count = math.prod(shape)
    block = rng.standard_normal(min(count, _BLOCK), np.float32) * np.float32(draw.deviation)
    return np.resize(block.astype(dtype.numpy()), shape)


def _random(value: ir.Value, shape: tuple[int, ...], rng: np.random.Generator, case: int, largest: int) -> np.ndarray:
    assert value.dtype is not None
    dtype = value.dtype.numpy()
    if value.dtype.is_floating_point():
        if value.is_graph_input() and case == 1:
            return _padding(shape, rng, case).astype(dtype)
        return rng.standard_normal(shape).astype(dtype)
    if value.dtype == ir.DataType.BOOL or len(shape) >= 2:
        return _padding(shape, rng, case).astype(dtype)
    if case in (0, _LENGTHS):  # lengths, offsets: one of each size there is
        return rng.permutation(np.resize(np.arange(largest, -1, -1), int(np.prod(shape)))).reshape(shape).astype(dtype)
    if case == _BEYOND:
        return rng.permutation(np.resize([_FAR, 1], int(np.prod(shape)))).reshape(shape).astype(dtype)
    return rng.integers(0, 2, shape).astype(dtype)


def _padding(shape: tuple[int, ...], rng: np.random.Generator, case: int) -> np.ndarray:
    """0/1 rows along the last axis: full, right-padded, left-padded, with holes, empty, in turn."""
    if not shape or 0 in shape:
        return np.ones(shape, np.int64)
    length = shape[-1]
    rows = np.ones((int(np.prod(shape[:-1])), length), np.int64)
    for index, row in enumerate(rows):
        kind = (index + 2 * case + 1) % 5
        pad = int(rng.integers(0, length)) if length > 1 else 0
        if kind == 1:
            row[length - pad :] = 0
        elif kind == 2:
            row[:pad] = 0
        elif kind == 3:
            row[:] = rng.integers(0, 2, length)
        elif kind == 4:
            row[:] = 0
    return rows.reshape(shape)
