"""The case matrix of FlashAttention: what tests, ``deployml kernels test`` and fuzzing run.

A case is a call (signature, attributes, sizes) with a recipe for its inputs. Its error bound is twice the error of
the naive twin against float64, plus a few units in the last place of the type and one rounding of the largest score:
a score that is off by d makes its weight wrong by a factor of about 1 + d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .op import Attributes, Layout, Signature, largest_score, naive, reference

__all__ = ["Case", "bound", "cases", "make_inputs", "random_case"]

DType = Literal["float32", "float16", "bfloat16"]

#: Type name to its numpy type.
NUMPY: Final[dict[str, Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call.

    Attributes:
        name: What is special about it.
        batch, heads, kv_heads, queries, keys, head_dim, value_dim: Sizes; ``keys`` does not count the past.
        past: Past keys, None for a call without past.
        cache: Capacity of the buffers that the keys are written into, None for a call without them.
        dtype: Type of the tensors.
        layout: "bsnh", "bnsh" or "packed" (then ``keys`` is ``queries`` and ``value_dim`` is ``head_dim``).
        lengths: Keys of each row, or None.
        mask: Axes of the mask that are not 1, out of "bhqk", or None; random, or the rows of ``holes``.
        bias: The same for the bias.
        fill: Value of the bias where it excludes ("-inf", a number), None for a random bias throughout.
        excluded: "left", "right" or "random": which keys mask and filled bias exclude.
        slopes, sink: The input is given.
        table: Distances the relative-position table holds to either side, None for no table.
        shared: The table has one row for all heads.
        weights: The softmax result comes out too.
        options: Attributes besides the head counts.
        seed: Of the random inputs.
    """

    name: str
    batch: int = 2
    heads: int = 2
    kv_heads: int = 2
    queries: int = 17
    keys: int = 17
    head_dim: int = 16
    value_dim: int = 16
    past: int | None = None
    cache: int | None = None
    dtype: DType = "float32"
    layout: Layout = "bsnh"
    lengths: tuple[int, ...] | None = None
    mask: str | None = None
    bias: str | None = None
    fill: float | None = None
    excluded: Literal["left", "right", "random"] = "random"
    slopes: bool = False
    sink: bool = False
    table: int | None = None
    shared: bool = False
    weights: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def signature(self) -> Signature:
        """The operator's signature for this case."""
        return Signature(
            layout=self.layout,
            past=self.past is not None,
            cache=self.cache is not None,
            lengths=self.lengths is not None,
            mask=self.mask is not None,
            bias=self.bias is not None,
            slopes=self.slopes,
            table=self.table is not None,
            sink=self.sink,
            weights=self.weights,
        )

    @property
    def attributes(self) -> Attributes:
        """The node's attributes for this case."""
        return Attributes(num_heads=self.heads, kv_heads=self.kv_heads, **self.options)

    @property
    def total(self) -> int:
        """Keys with the past, or that the cache holds."""
        return self.keys + (self.past or 0) if self.cache is None else self.cache


def make_inputs(case: Case) -> dict[str, npt.NDArray]:
    """The inputs of a case, by name, in the operator's order."""
    rng = np.random.default_rng([case.seed, len(case.name), case.queries, case.total])
    dtype = NUMPY[case.dtype]

    def normal(*shape: int) -> npt.NDArray:
        return rng.standard_normal(shape).astype(np.float32).astype(dtype)

    def rows(heads: int, length: int, dim: int) -> npt.NDArray:
        if case.layout == "bnsh":
            return normal(case.batch, heads, length, dim)
        return normal(case.batch, length, heads * dim)

    c = case
    packed = c.layout == "packed"
    given = (
        {"packed": rows(c.heads + 2 * c.kv_heads, c.queries, c.head_dim)}
        if packed
        else {
            "query": rows(c.heads, c.queries, c.head_dim),
            "key": rows(c.kv_heads, c.keys, c.head_dim),
            "value": rows(c.kv_heads, c.keys, c.value_dim),
        }
    )
    before = c.past if c.cache is None else c.cache
    if before is not None:
        given["past_key"] = normal(c.batch, c.kv_heads, before, c.head_dim)
        given["past_value"] = normal(c.batch, c.kv_heads, before, c.value_dim)
    if c.lengths is not None:
        given["key_lengths"] = np.array(c.lengths, np.int32)
    if c.mask is not None:
        given["mask"] = _keep(c, c.mask, rng)
    if c.bias is not None:
        given["bias"] = normal(*_broadcast(c, c.bias))
        if c.fill is not None:
            filled = np.where(_keep(c, c.bias, rng), given["bias"].astype(np.float32), np.float32(c.fill))
            with np.errstate(over="ignore"):  # a float16 takes -3.4e38 as -inf
                given["bias"] = filled.astype(dtype)
    if c.slopes:
        given["slopes"] = (2.0 ** -np.arange(1, c.heads + 1)).astype(dtype)
    if c.table is not None:
        given["table"] = normal(1 if c.shared else c.heads, 2 * c.table + 1)
    if c.sink:
        given["sink"] = normal(c.heads)
    return given


def _broadcast(case: Case, axes: str) -> tuple[int, ...]:
    sizes = {"b": case.batch, "h": case.heads, "q": case.queries, "k": case.total}
    return tuple(size if axis in axes else 1 for axis, size in sizes.items())


def _keep(case: Case, axes: str, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    shape = _broadcast(case, axes)
    if case.excluded == "random" or "k" not in axes:
        return rng.random(shape) > 0.4
    kept = rng.integers(0, case.total + 1, size=(*shape[:3], 1))
    j = np.arange(case.total)
    return j >= case.total - kept if case.excluded == "left" else j < kept


def bound(case: Case, inputs: Mapping[str, npt.NDArray]) -> float:
    """Largest absolute error granted against :func:`reference`."""
    exact = reference(case.signature, case.attributes, inputs)
    twin = naive(case.signature, case.attributes, inputs)
    error = max(
        (float(np.max(np.abs(t.astype(np.float64) - e), initial=0.0)) for t, e in zip(twin, exact, strict=True)),
        default=0.0,
    )
    size = max(float(np.max(np.abs(e), initial=0.0)) for e in exact)
    step = float(ml_dtypes.finfo(NUMPY[case.dtype]).eps)
    score = largest_score(case.signature, case.attributes, inputs)
    rounding = 0.5 * float(np.finfo(np.float32).eps) * score
    return 2.0 * error + (4.0 * step + rounding) * size


def cases() -> tuple[Case, ...]:
    """Every case of the matrix. Names are unique."""
    return tuple(
        _with_unique_names(
            [
                *_sizes(),
                *_aligned(),
                *_masks(),
                *_whole(),
                *_extras(),
                *_caches(),
                *_tables(),
                *_weights(),
                *_packed(),
                *_halves(),
            ]
        )
    )


def _with_unique_names(found: list[Case]) -> Iterator[Case]:
    names = [case.name for case in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"two cases are named {doubled}")
    yield from found


def _sizes() -> Iterator[Case]:
    for queries, keys in ((1, 1), (2, 3), (4, 513), (5, 77), (24, 64), (25, 65), (33, 1), (100, 1100), (600, 40)):
        yield Case(name=f"{queries}x{keys}", queries=queries, keys=keys)
    for head in (1, 3, 8, 40, 64, 80, 96, 128, 200, 256):
        yield Case(name=f"head {head}", head_dim=head, value_dim=head, queries=29, keys=70)
        yield Case(name=f"head {head} decode", head_dim=head, value_dim=head, queries=1, keys=70, layout="bnsh")
    for head, value in ((24, 7), (7, 48), (64, 33), (16, 130)):
        yield Case(name=f"head {head} value {value}", head_dim=head, value_dim=value, queries=30, keys=21)
    for heads, kv_heads in ((4, 2), (6, 1), (3, 3), (8, 2)):
        for layout in ("bsnh", "bnsh"):
            yield Case(name=f"{heads}/{kv_heads} heads {layout}", heads=heads, kv_heads=kv_heads, layout=layout)
    # The sum of so many values is a thousandth of what they come to, so every rounding on the way counts.
    long = {"queries": 5, "keys": 3963, "lengths": (3075,), "batch": 1, "head_dim": 88, "value_dim": 40}
    yield Case(name="a long sum", heads=1, kv_heads=1, sink=True, seed=2018125, **long)
    yield Case(name="a long sum, decode", heads=2, kv_heads=1, seed=2018126, **long | {"queries": 1})
    yield Case(name="no key", keys=0, queries=3)
    yield Case(name="no key, sink", keys=0, queries=3, sink=True)
    yield Case(name="no query", keys=4, queries=0)


def _aligned() -> Iterator[Case]:
    windows = ((-1, -1), (0, -1), (5, -1), (130, -1), (-1, 7), (5, 7), (0, 0))
    for queries, keys in ((1, 50), (60, 60), (30, 90), (90, 30), (130, 700)):
        for lower_right in (0, 1):
            common = {"queries": queries, "keys": keys, "batch": 1}
            for left, right in windows:
                options = {"lower_right": lower_right, "window_left": left, "window_right": right}
                yield Case(
                    name=f"window {left},{right} {queries}x{keys} lower_right={lower_right}",
                    options=options,
                    **common,
                )
            for left in (-1, 9):
                options = {"lower_right": lower_right, "window_left": left, "causal": 1}
                yield Case(
                    name=f"causal window {left} {queries}x{keys} lower_right={lower_right}",
                    options=options,
                    **common,
                )


def _masks() -> Iterator[Case]:
    for queries, keys in ((1, 40), (40, 40), (50, 600)):
        shape = {"queries": queries, "keys": keys}
        at = f"{queries}x{keys}"
        for lengths in ((0, keys), (keys // 2, 1)):
            yield Case(name=f"lengths {lengths} {at}", lengths=lengths, **shape)
            yield Case(
                name=f"lengths {lengths} causal lower right {at}",
                lengths=lengths,
                options={"causal": 1, "lower_right": 1},
                **shape,
            )
        for axes in ("", "k", "bk", "q", "qk", "bqk", "hqk", "bhqk"):
            yield Case(name=f"mask {axes or 'scalar'} {at}", mask=axes, **shape)
            yield Case(name=f"bias {axes or 'scalar'} {at}", bias=axes, **shape)
        for excluded in ("left", "right"):
            yield Case(name=f"mask {excluded} {at}", mask="bk", excluded=excluded, **shape)
            for fill in (-np.inf, -3.4e38, -1e4, -50.0):
                for axes in ("bk", "bqk"):
                    yield Case(
                        name=f"bias {axes} {fill:g} {excluded} {at}",
                        bias=axes,
                        fill=float(fill),
                        excluded=excluded,
                        **shape,
                    )


def _whole() -> Iterator[Case]:
    """Rows in fours and keys in whole vectors: what a kernel may read and write where it lies."""
    for queries, keys, layout in ((8, 16, "bsnh"), (28, 48, "bnsh"), (52, 400, "bsnh")):
        shape = {"queries": queries, "keys": keys, "layout": layout}
        at = f"whole {queries}x{keys} {layout}"
        yield Case(name=f"plain {at}", options={"scale": 0.3}, **shape)
        yield Case(name=f"value 32 of 20 {at}", head_dim=20, value_dim=32, **shape)
        yield Case(name=f"sink and weights {at}", sink=True, weights=True, heads=4, kv_heads=2, **shape)
        yield Case(name=f"causal {at}", options={"causal": 1, "lower_right": 1}, **shape)
        for axes in ("bk", "qk", "bhqk"):
            yield Case(name=f"bias {axes} {at}", bias=axes, options={"scale": 0.3}, **shape)
        for fill in (-np.inf, -50.0):
            yield Case(name=f"bias {fill:g} sink {at}", bias="bqk", fill=float(fill), sink=True, **shape)


def _extras() -> Iterator[Case]:
    for queries, keys in ((1, 40), (40, 40), (70, 530)):
        shape = {"queries": queries, "keys": keys}
        at = f"{queries}x{keys}"
        yield Case(name=f"slopes {at}", slopes=True, heads=4, kv_heads=4, **shape)
        yield Case(name=f"slopes causal {at}", slopes=True, options={"causal": 1, "lower_right": 1}, **shape)
        yield Case(name=f"softcap {at}", options={"softcap": 2.0, "scale": 1.5}, **shape)
        yield Case(name=f"softcap 50 {at}", options={"softcap": 50.0}, **shape)
        yield Case(name=f"sink {at}", sink=True, **shape)
        yield Case(name=f"scale {at}", options={"scale": 0.01}, **shape)
        everything = {"causal": 1, "lower_right": 1, "window_left": 20, "softcap": 5.0}
        yield Case(
            name=f"everything {at}",
            lengths=(keys, keys // 3),
            mask="bk",
            bias="hqk",
            slopes=True,
            sink=True,
            heads=4,
            kv_heads=2,
            options=everything,
            **shape,
        )
    for layout in ("bsnh", "bnsh"):
        for past, new in ((0, 5), (9, 1), (600, 3), (40, 40)):
            yield Case(
                name=f"past {past}+{new} {layout}",
                past=past,
                queries=new,
                keys=new,
                layout=layout,
                heads=4,
                options={"causal": 1, "lower_right": 1},
            )


def _caches() -> Iterator[Case]:
    for layout in ("bsnh", "bnsh"):
        for new, capacity, lengths in ((1, 40, (40, 7)), (5, 90, (33, 5)), (30, 600, (600, 12)), (0, 8, (8, 0))):
            yield Case(
                name=f"cache {capacity} {lengths} +{new} {layout}",
                cache=capacity,
                queries=max(new, 1),
                keys=new,
                lengths=lengths,
                layout=layout,
                heads=4,
                options={"causal": 1, "lower_right": 1},
            )
    yield Case(name="cache, mask, bias", cache=50, queries=3, keys=3, lengths=(50, 20), mask="bk", bias="hqk")


def _tables() -> Iterator[Case]:
    for queries, keys in ((1, 40), (40, 40), (70, 530), (30, 90)):
        shape = {"queries": queries, "keys": keys}
        at = f"{queries}x{keys}"
        for reach in (0, 3, 20, 128, 700):
            yield Case(name=f"table {reach} {at}", table=reach, heads=4, **shape)
        yield Case(name=f"table of one head {at}", table=9, shared=True, **shape)
        yield Case(name=f"table lower right {at}", table=9, options={"lower_right": 1, "causal": 1}, **shape)
        yield Case(name=f"table, mask, softcap {at}", table=9, mask="bk", options={"softcap": 3.0}, **shape)
        yield Case(name=f"table, low bias {at}", table=9, bias="bk", fill=-1e4, excluded="right", **shape)
        yield Case(name=f"table, lengths {at}", table=9, lengths=(keys, keys // 3), sink=True, **shape)


def _weights() -> Iterator[Case]:
    for queries, keys in ((1, 40), (40, 40), (33, 530), (3, 700)):
        shape = {"queries": queries, "keys": keys, "weights": True}
        at = f"{queries}x{keys}"
        yield Case(name=f"weights {at}", **shape)
        yield Case(name=f"weights causal {at}", options={"causal": 1, "lower_right": 1}, **shape)
        yield Case(name=f"weights window {at}", options={"window_left": 3, "window_right": 2}, **shape)
        yield Case(name=f"weights mask {at}", mask="bqk", heads=4, **shape)
        yield Case(name=f"weights low bias {at}", bias="bk", fill=-1e4, excluded="left", layout="bnsh", **shape)
        yield Case(name=f"weights sink, lengths {at}", sink=True, lengths=(0, keys // 2), **shape)
        yield Case(name=f"weights table, softcap {at}", table=5, options={"softcap": 3.0}, **shape)
        for dtype in ("float16", "bfloat16"):
            yield Case(name=f"weights {at} {dtype}", dtype=dtype, mask="k", **shape)
    yield Case(name="weights, no key", keys=0, queries=3, weights=True)


def _packed() -> Iterator[Case]:
    """Query, key and value side by side in each row: row strides that no other layout has."""
    for length in (1, 9, 40, 70, 530):
        shape = {"queries": length, "keys": length, "layout": "packed"}
        yield Case(name=f"packed {length}", **shape)
        yield Case(name=f"packed {length} causal 6/2 heads", heads=6, options={"causal": 1}, **shape)
        yield Case(name=f"packed {length} head 13", head_dim=13, value_dim=13, heads=3, kv_heads=1, **shape)
        yield Case(name=f"packed {length} mask, window", mask="bk", options={"window_left": 7}, **shape)
        yield Case(name=f"packed {length} table, low bias", table=9, bias="bk", fill=-1e4, **shape)
        yield Case(name=f"packed {length} sink", lengths=(length // 2, 1), slopes=True, sink=True, **shape)
        for dtype in ("float16", "bfloat16"):
            yield Case(name=f"packed {length} {dtype}", head_dim=64, value_dim=64, dtype=dtype, **shape)
            yield Case(name=f"packed {length} bias {dtype}", bias="k", head_dim=20, value_dim=20, dtype=dtype, **shape)
    yield Case(name="packed, no row", queries=0, keys=0, layout="packed")


def _halves() -> Iterator[Case]:
    halves: tuple[DType, ...] = ("float16", "bfloat16")
    for dtype in halves:
        for queries, keys in ((1, 70), (40, 70), (70, 530)):
            shape = {"queries": queries, "keys": keys, "dtype": dtype}
            at = f"{queries}x{keys} {dtype}"
            yield Case(name=f"plain {at}", **shape)
            yield Case(name=f"head 40 {at}", head_dim=40, value_dim=72, **shape)
            yield Case(name=f"causal {at}", heads=4, options={"causal": 1, "lower_right": 1}, **shape)
            yield Case(name=f"bias, mask, sink {at}", bias="hqk", mask="bk", sink=True, slopes=True, **shape)
        yield Case(name=f"past {dtype}", past=11, queries=2, keys=2, dtype=dtype)


def random_case(seed: int, *, largest: int = 80) -> Case:
    """A case drawn from everything the operator can say, the same for the same seed."""
    rng = np.random.default_rng(seed)

    def pick(*values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    kv_heads = pick(1, 1, 2, 3)
    queries, new = pick(1, 1, 2, 5, int(rng.integers(1, largest))), int(rng.integers(0, largest * pick(1, 1, 8)))
    past = pick(None, None, None, 0, int(rng.integers(0, largest)))
    batch = pick(1, 2, 3)
    cache = None if past is not None else pick(None, None, None, new + int(rng.integers(0, largest)))
    total = cache if cache is not None else new + (past or 0)
    lengths = pick(None, None, tuple(int(x) for x in rng.integers(0, total + 1, batch)))
    table = pick(None, None, 0, 3, int(rng.integers(0, 2 * largest)))
    axes = ("", "k", "bk", "q", "qk", "bqk", "hk", "hqk", "bhqk")
    options = {
        "causal": pick(0, 1),
        "lower_right": pick(0, 1),
        "window_left": pick(-1, -1, 0, int(rng.integers(0, largest))),
        "window_right": pick(-1, -1, 0, int(rng.integers(0, largest))),
        "softcap": pick(0.0, 0.0, 0.0, 3.0, 50.0),
        "scale": pick(0.0, 0.0, 0.3, 2.0),
    }
    case = Case(
        name=f"random {seed}",
        batch=batch,
        kv_heads=kv_heads,
        heads=kv_heads * pick(1, 1, 2, 4),
        queries=queries,
        keys=new,
        head_dim=pick(8, 16, 64, int(rng.integers(1, 100))),
        value_dim=pick(8, 16, 64, int(rng.integers(1, 100))),
        past=past,
        cache=cache,
        dtype=pick("float32", "float32", "float32", "float16", "bfloat16"),
        layout=pick("bsnh", "bnsh"),
        lengths=lengths if cache is None or lengths is not None else (total,) * batch,
        mask=pick(None, None, pick(*axes)),
        bias=pick(None, None, pick(*axes)),
        fill=pick(None, -np.inf, -3.4e38, -1e4, -30.0),
        excluded=pick("left", "right", "random"),
        slopes=pick(False, False, True) and table is None,
        table=table,
        shared=pick(False, True),
        weights=pick(False, False, False, True) and past is None and cache is None,
        sink=pick(False, False, True),
        options=options,
        seed=seed,
    )
    case = _as_packed(case) if pick(False, False, False, True) else case
    return _as_whole(case) if pick(False, False, True) else case


def _as_packed(case: Case) -> Case:
    """The nearest call that takes query, key and value as one tensor."""
    lengths = None if case.lengths is None else tuple(min(length, case.queries) for length in case.lengths)
    sizes = {"keys": case.queries, "value_dim": case.head_dim, "past": None, "cache": None, "weights": False}
    return replace(case, layout="packed", lengths=lengths, **sizes)


def _as_whole(case: Case) -> Case:
    """The nearest call with rows in fours, keys and values in whole vectors; past and cache have sizes of their own."""
    if case.past is not None or case.cache is not None:
        return case
    queries, keys = -(-case.queries // 4) * 4, -(-case.keys // 16) * 16
    if case.layout == "packed":
        return replace(case, queries=max(queries, keys), keys=max(queries, keys))
    return replace(case, queries=queries, keys=keys, value_dim=-(-case.value_dim // 16) * 16)
