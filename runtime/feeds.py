"""The parity grid: deterministic inputs over shapes and masks that the trace did not see.

Sizes: batch 1 and more, length 1, even, odd and prime, never the traced size. Masks: all ones, right pad, left pad,
holes, mixed lengths, a row of one token and, where the model allows it, a row that is masked out entirely.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from .errors import InputError
from .shapes import evaluate, symbols_of

__all__ = [
    "MASKS",
    "Case",
    "InputSpec",
    "MaskKind",
    "Role",
    "beyond",
    "draw",
    "elements",
    "grid",
    "grid_sizes",
    "is_called_batch",
    "is_maskable",
    "role_of",
    "root_symbols",
    "signals",
]

Role = Literal[
    "token-ids",
    "token-type-ids",
    "position-ids",
    "boxes",
    "attention-mask",
    "key-padding-mask",
    "additive-mask",
    "values",
]
MaskKind = Literal["full", "right", "left", "holes", "mixed", "one-token", "dead-row"]

MASKS: Final[tuple[MaskKind, ...]] = ("full", "right", "left", "holes", "mixed", "one-token", "dead-row")

#: (batch, length) of the cases; a traced or forbidden size is replaced by the next prime.
_SIZES: Final = ((2, 8), (1, 1), (1, 5), (3, 7), (2, 13), (5, 3))
_PRIMES: Final = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)
_DEFAULT_BOUND: Final[dict[str, int]] = {"token-ids": 10, "token-type-ids": 2, "boxes": 2, "values": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name in the graph.
        dtype: numpy's name of its element type ("float32", "int64", "bool", "bfloat16").
        shape: Sizes; a str is symbolic and may be an expression of other symbols ("past + sequence", "4*n").
        role: What the values mean. "attention-mask" has 1 (or True) at real positions, "key-padding-mask" True at
            padded ones, "additive-mask" 0 at real positions and the dtype's lowest number at padded ones. "boxes" are
            corners (left, top, right, bottom), none of them negative in width or height.
        bound: Integers stay below it (size of the vocabulary, of the position table). None: a small default.
        marks: Integers that the model looks for, padding among them. No row begins with one: a causal row that sees
            padding alone has no key, and what attention gives there is an assumption, not a value.
        scale: Standard deviation of float values.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    role: Role = "values"
    bound: int | None = None
    marks: tuple[int, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set of inputs.

    Attributes:
        name: For people and reports: "batch=3 sequence=7 mask=left".
        feeds: Input name to array.
        sizes: Symbol to size.
        masks: Boolean arrays [batch, length], True at real positions, one for each mask input; of a mask over
            "past + sequence" also the part over the sequence.
    """

    name: str
    feeds: Mapping[str, np.ndarray]
    sizes: Mapping[str, int] = field(default_factory=dict)
    masks: tuple[np.ndarray, ...] = ()

    @property
    def padded(self) -> bool:
        """Whether any position is padded."""
        return any(not mask.all() for mask in self.masks)


def role_of(name: str, dtype: str) -> Role:
    """Guess the role of an input from the names that transformers and torch use; "values" if none fits."""
    low = name.lower()
    integer = dtype.startswith(("int", "uint"))
    if "pad" in low and dtype == "bool":
        return "key-padding-mask"  # PyTorch's and fairseq's: true where a position is padded
    if "mask" in low and "pos" not in low:
        return "attention-mask"
    if "bbox" in low:
        return "boxes"
    if "position" in low and integer:
        return "position-ids"
    if ("token_type" in low or "segment" in low) and integer:
        return "token-type-ids"
    if low.endswith(("ids", "tokens", "idx")) and integer:
        return "token-ids"
    return "key-padding-mask" if "padding" in low and integer else "values"


def grid(
    specs: Sequence[InputSpec],
    *,
    traced: Mapping[str, int] | None = None,
    limits: Mapping[str, tuple[int, int | None]] | None = None,
    masks: Sequence[MaskKind] = MASKS[:-1],
    seed: int = 0,
) -> tuple[Case, ...]:
    """Draw the cases for a model with these inputs; the same arguments give the same bits.

    Args:
        specs: The inputs. Without symbolic dimensions the shape is the same in all cases.
        traced: Symbol to the size it was traced with; no case repeats it (where ``limits`` leave a choice).
        limits: Symbol to its smallest and largest size (None: no limit).
        masks: Mask kinds to try. "dead-row" is not among the default: not every model allows it.
        seed: Changes the values, not the shapes.

    Raises:
        InputError: if there are no inputs, a dtype is unknown, or a dimension cannot be computed.
    """
    if not specs:
        raise InputError("a model without inputs cannot be compared", hint="give at least one input")
    shapes = grid_sizes(specs, traced=traced, limits=limits)
    has_mask = any(is_maskable(spec) for spec in specs)
    kinds: list[MaskKind] = [k for k in masks if k != "full"] if has_mask else []
    cases = [draw(specs, sizes, seed=seed) for sizes in shapes]
    least = {symbol: low for symbol, (low, _) in (limits or {}).items()}
    cases += [draw(specs, s, mask=k, seed=seed, least=least) for s, k in _padded_pairs(specs, shapes, kinds)]
    return tuple(cases)


def grid_sizes(
    specs: Sequence[InputSpec],
    *,
    traced: Mapping[str, int] | None = None,
    limits: Mapping[str, tuple[int, int | None]] | None = None,
) -> list[dict[str, int]]:
    """The sizes of the grid's shapes, each once; the second of them is the smallest."""
    roots = root_symbols(specs)
    return _unique([_sizes_for(roots, *pair, traced or {}, limits or {}) for pair in _SIZES])


def draw(
    specs: Sequence[InputSpec],
    sizes: Mapping[str, int],
    *,
    mask: MaskKind = "full",
    seed: int = 0,
    least: Mapping[str, int] | None = None,
) -> Case:
    """One case of the given sizes and mask kind. Left and other padding moves the position ids along.

    With ``least``, the smallest size of a symbol, no row keeps fewer positions: less than a frame of speech is no row.
    """
    label = " ".join(f"{name}={size}" for name, size in sizes.items())
    has_mask = any(is_maskable(spec) for spec in specs)
    name = f"{label} mask={mask}".strip() if has_mask else label or "fixed"
    shapes = {spec.name: tuple(evaluate(dim, sizes) for dim in spec.shape) for spec in specs}
    kept = {
        s.name: keep_mask(mask, shapes[s.name], _rng(seed, name, s.name), _shortest(s.shape[-1], least or {}))
        for s in specs
        if is_maskable(s)
    }
    feeds = {s.name: _values(s, shapes[s.name], kept, _rng(seed, name, s.name)) for s in specs}
    masks = [m for m in kept.values() if m.ndim == 2]
    masks += [kept[s.name][:, -new:] for s in specs if s.name in kept and (new := _new_tokens(s, specs, sizes))]
    unique = _unique_arrays(masks)
    return Case(name=name, feeds=feeds, sizes=dict(sizes), masks=unique)


def elements(shapes: Iterable[Sequence[int | str]], sizes: Mapping[str, int]) -> int:
    """How many elements the largest of some inputs has at some sizes."""
    return max((math.prod(evaluate(dim, sizes) for dim in shape) for shape in shapes), default=0)


def signals(inputs: Iterable[tuple[str, str, Sequence[int | str]]]) -> set[str]:
    """Symbols along which samples of a signal or pixels lie, which may be many where tokens would fill the memory.

    They end an input of floats that is no mask, and are no size of integers that are none: of token ids.

    Args:
        inputs: Name, dtype and shape of each input.
    """
    told = [(dtype, shape) for name, dtype, shape in inputs if shape and "mask" not in role_of(name, dtype)]
    last = {symbol for dtype, shape in told if "float" in dtype for symbol in symbols_of(shape[-1])}
    return last - {
        symbol for dtype, shape in told if "float" not in dtype for dim in shape for symbol in symbols_of(dim)
    }


def is_called_batch(symbol: str) -> bool:
    """Whether an axis goes by a name of the batch."""
    return symbol.lower().startswith("batch") or symbol.lower() in ("b", "n", "bs")


def _new_tokens(spec: InputSpec, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> int:
    """How many positions a mask over "past + sequence" ends with that are no past; 0 for other masks.

    New tokens come as ids or vectors, a past as keys and values of several heads.
    """
    symbols = symbols_of(spec.shape[-1])
    if len(symbols) < 2:
        return 0
    tokens = [s for s in symbols if any(s in other.shape for other in specs if len(other.shape) < 4)]
    return sizes.get((tokens or symbols)[-1], 0)


def _shortest(dim: int | str, least: Mapping[str, int]) -> int:
    """How many positions a row must keep; a bound of 2, which torch likes to draw, is none of the model's."""
    low = least.get(dim, 1) if isinstance(dim, str) else 1
    return low if low > 2 else 1


def keep_mask(kind: MaskKind, shape: tuple[int, ...], rng: np.random.Generator, least: int = 1) -> np.ndarray:
    """A boolean mask [batch, length], True at real positions. Every row keeps ``least``, save in "dead-row".

    For kinds that pad on a side, row lengths differ; the first row of "mixed" is whole.
    """
    batch, length = shape[0], shape[-1]
    rows = np.arange(batch)[:, None]
    columns = np.arange(length)[None, :]
    lengths = np.maximum(min(least, length), length - 1 - (rows * max(1, length // max(batch, 2))) % max(1, length - 1))
    if kind == "right":
        return columns < lengths
    if kind == "left":
        return columns >= length - lengths
    if kind == "mixed":
        return columns < np.where(rows == 0, length, lengths)
    if kind == "holes":
        keep = rng.random((batch, length)) < 0.6
        keep[:, length // 2] = False
        keep[:, -1] = True
        keep[:, : least if least > 1 else 0] = True
        return keep
    keep = np.ones((batch, length), bool)
    if kind == "one-token":
        keep[-1, least:] = False
    if kind == "dead-row":
        keep[-1] = False
    return keep


def _values(
    spec: InputSpec, shape: tuple[int, ...], kept: Mapping[str, np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    dtype = _dtype(spec)
    if is_maskable(spec):
        return _mask_values(spec, kept[spec.name], shape, dtype)
    if spec.role == "position-ids":
        return _positions(shape, kept, spec.bound).astype(dtype)
    if dtype == np.dtype(bool):
        return rng.random(shape) < 0.5
    if dtype.kind in "iu":
        high = spec.bound if spec.bound is not None else _DEFAULT_BOUND.get(spec.role, 2)
        drawn = _begun(rng.integers(0, max(1, high), shape).astype(dtype), high, spec.marks)
        return np.sort(drawn, -1) if spec.role == "boxes" else drawn
    if spec.role == "boxes":
        return np.sort(rng.random(shape), -1).astype(dtype)
    return (rng.standard_normal(shape) * spec.scale).astype(dtype)


def _begun(ids: np.ndarray, high: int, marks: tuple[int, ...]) -> np.ndarray:
    """Ids whose rows begin with none of ``marks``, where there is another number."""
    other = next((n for n in range(high) if n not in marks), None)
    if marks and other is not None and ids.ndim > 1:
        ids[..., 0] = np.where(np.isin(ids[..., 0], marks), other, ids[..., 0])
    return ids


def _mask_values(spec: InputSpec, keep: np.ndarray, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    wide = keep.reshape(keep.shape[0], *(1,) * (len(shape) - 2), keep.shape[1])
    wide = np.broadcast_to(wide, shape)
    if spec.role == "key-padding-mask":
        return (~wide).astype(dtype)
    if spec.role == "attention-mask":
        return wide.astype(dtype)
    lowest = np.finfo(np.float16 if dtype.itemsize == 2 else dtype).min
    return np.where(wide, 0.0, lowest).astype(dtype)


def _positions(shape: tuple[int, ...], kept: Mapping[str, np.ndarray], bound: int | None) -> np.ndarray:
    """Counted over real positions, as generation code does; padded ones before the first get 0."""
    if not shape:
        return np.zeros((), np.int64)
    keep = next((m for m in kept.values() if m.shape == shape), None)
    ids = np.broadcast_to(np.arange(shape[-1]), shape) if keep is None else np.cumsum(keep, -1) - 1
    ids = np.maximum(ids, 0)
    return ids if bound is None else np.minimum(ids, bound - 1)


def root_symbols(specs: Sequence[InputSpec]) -> list[tuple[str, bool]]:
    """Symbols to choose sizes for, in order of appearance, each with whether it is the batch."""
    names = dict.fromkeys(n for spec in specs for dim in spec.shape for n in symbols_of(dim))
    batch = _batch_symbol(specs, list(names))
    return [(name, name == batch) for name in names]


def _batch_symbol(specs: Sequence[InputSpec], names: Sequence[str]) -> str | None:
    """The symbol that is called so or else leads a mask, an input of more than one symbol, or any input."""
    called_so = [n for n in names if is_called_batch(n)]
    masks = [spec.shape for spec in specs if is_maskable(spec)]
    several = [spec.shape for spec in specs if sum(isinstance(d, str) for d in spec.shape) > 1]
    leading = [shape[0] for shape in [*masks, *several, *(s.shape for s in specs)] if shape]
    return next((n for n in [*called_so, *leading] if n in names), None)


def _sizes_for(
    roots: Sequence[tuple[str, bool]],
    batch: int,
    length: int,
    traced: Mapping[str, int],
    limits: Mapping[str, tuple[int, int | None]],
) -> dict[str, int]:
    """Sizes of one shape. The second and further length symbols get sizes of their own, unless length is 1."""
    sizes: dict[str, int] = {}
    taken: set[int] = set()
    for symbol, is_batch in roots:
        wish = batch if is_batch else length
        used = taken if not is_batch and length > 1 else set()
        limit = limits.get(symbol, (1, None))
        size = _choose(beyond(wish, limit, traced.get(symbol)), {traced.get(symbol), *used}, limit)
        sizes[symbol] = size
        if not is_batch:
            taken.add(size)
    return sizes


def beyond(wish: int, limit: tuple[int, int | None], shown: int | None = None) -> int:
    """A wish for a size as it is, or, where the smallest size lies above it, as far above that as the wish above 1.

    The steps are an eighth of the way to the size of the example, or a quarter of the smallest size where that is more:
    lengths that differ by a sample or two make the same frames.
    """
    low, high = max(1, limit[0]), limit[1]
    if wish >= low:
        return wish
    size = low + (wish - 1) * max(1, low // 4, ((shown or low) - low) // 8)
    size = size if shown is None else min(size, 2 * max(shown, low))
    return size if high is None else min(size, high)


def _choose(wish: int, avoid: set[int | None], limit: tuple[int, int | None]) -> int:
    low, high = max(1, limit[0]), limit[1]
    options = [wish, *(p for p in _PRIMES if p > wish), *(p for p in reversed(_PRIMES) if p < wish), wish + 1, 1, low]
    if high is not None:
        options.append(high)
    fitting = [n for n in options if n >= low and (high is None or n <= high)]
    return next((n for n in fitting if n not in avoid), fitting[0])


def _padded_pairs(
    specs: Sequence[InputSpec], shapes: Sequence[Mapping[str, int]], kinds: Sequence[MaskKind]
) -> list[tuple[Mapping[str, int], MaskKind]]:
    """Which shape carries which mask: all kinds on the widest batch, plus right and left pad on a single row."""
    if not kinds:
        return []

    def extent(sizes: Mapping[str, int]) -> tuple[int, int]:
        dims = [tuple(evaluate(d, sizes) for d in s.shape) for s in specs if is_maskable(s)]
        return min(d[0] for d in dims), min(d[-1] for d in dims)

    usable = [s for s in shapes if extent(s)[1] > 2] or list(shapes)
    wide = max(usable, key=lambda s: (extent(s)[0] >= 3) * extent(s)[1] + extent(s)[0] / 100)
    single = [s for s in usable if extent(s)[0] == 1 and s is not wide][:1]
    pairs: list[tuple[Mapping[str, int], MaskKind]] = [(wide, kind) for kind in kinds]
    return pairs + [(s, kind) for s in single for kind in kinds if kind in ("right", "left")]


def is_maskable(spec: InputSpec) -> bool:
    """Whether an input is a mask with a batch axis, whose last axis runs over positions."""
    return spec.role in ("attention-mask", "key-padding-mask", "additive-mask") and len(spec.shape) >= 2


def _dtype(spec: InputSpec) -> np.dtype[Any]:
    if spec.dtype == "bfloat16":
        import ml_dtypes  # comes with onnx

        return np.dtype(ml_dtypes.bfloat16)
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise InputError(
            f"input '{spec.name}' has the unknown dtype '{spec.dtype}'", hint="use a numpy name such as float32"
        ) from None


def _rng(seed: int, case: str, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(case.encode()), zlib.crc32(name.encode())])


def _unique(shapes: Sequence[dict[str, int]]) -> list[dict[str, int]]:
    return [s for i, s in enumerate(shapes) if s not in shapes[:i]]


def _unique_arrays(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    kept: list[np.ndarray] = []
    for array in arrays:
        if not any(array.shape == other.shape and (array == other).all() for other in kept):
            kept.append(array)
    return tuple(kept)
