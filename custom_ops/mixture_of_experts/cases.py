"""The case matrix of MixtureOfExperts: what tests and fuzzing run.

The error bound of a case is twice the error of the naive twin against float64, plus a few units in the last place of
the type at the largest result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .op import ACTIVATIONS, Attributes, Signature, naive, reference, signatures

__all__ = ["NUMPY", "Case", "bound", "cases", "make_inputs", "random_case"]

DType = Literal["float32", "float16", "bfloat16"]

#: How tokens choose their experts: different ones at random, all the same, the first much more often, the same one
#: in every slot, or at random with indices that name no expert.
Route = Literal["random", "one", "skewed", "repeated", "outside"]

#: Type name to its numpy type.
NUMPY: Final[dict[str, Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

#: Attributes of gpt-oss.
CLAMPED: Final = Attributes(alpha=1.702, limit=7.0, offset=1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call.

    Attributes:
        name: What is special about it.
        signature: Activation, gate and bias.
        attributes: Of the node.
        tokens: Axes of x before the last.
        each, count: Experts of a token, and of the call.
        hidden, inner: Sizes H and I.
        route: How tokens choose.
        dtype: Type of the tensors.
        spread: Of the numbers in x.
        seed: Of the random inputs.
    """

    name: str
    signature: Signature = field(default_factory=Signature)
    attributes: Attributes = field(default_factory=Attributes)
    tokens: tuple[int, ...] = (7,)
    each: int = 2
    count: int = 4
    hidden: int = 48
    inner: int = 40
    route: Route = "random"
    dtype: DType = "float32"
    spread: float = 1.0
    seed: int = 0


def make_inputs(case: Case) -> dict[str, npt.NDArray]:
    """The inputs of a case, by name, in the operator's order. Products keep about the spread of x."""
    sizes = (*case.tokens, case.each, case.count, case.hidden, case.inner)
    rng = np.random.default_rng([case.seed, *sizes])
    made = case.inner * (2 if case.signature.gated else 1)
    shapes = {
        "x": (*case.tokens, case.hidden),
        "weights": (*case.tokens, case.each),
        "inner": (case.count, made, case.hidden),
        "outer": (case.count, case.hidden, case.inner),
        "inner_bias": (case.count, made),
        "outer_bias": (case.count, case.hidden),
    }
    scales = {"x": case.spread, "inner": case.hidden**-0.5, "outer": case.inner**-0.5}

    def draw(name: str) -> npt.NDArray:
        if name == "experts":
            return _choose(case, rng)
        numbers = rng.standard_normal(shapes[name]) * scales.get(name, 1.0)
        return numbers.astype(np.float32).astype(NUMPY[case.dtype])

    return {name: draw(name) for name in case.signature.inputs}


def _choose(case: Case, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """The experts of each token."""
    shape = (*case.tokens, case.each)
    if case.route == "one":
        return np.full(shape, case.count - 1, np.int64)
    if case.route == "repeated":
        return np.broadcast_to(rng.integers(case.count, size=(*case.tokens, 1)), shape).astype(np.int64)
    if case.route == "outside":
        wrong = np.array([-1, -(2**63), case.count, case.count + 5, 2**40, 2**63 - 1])
        drawn = rng.integers(case.count, size=shape)
        return np.where(rng.random(shape) < 0.4, wrong[rng.integers(len(wrong), size=shape)], drawn)
    odds = np.ones(case.count)
    if case.route == "skewed":
        odds[0] = 8.0 * case.count
    order = np.argsort(rng.random((*case.tokens, case.count)) ** (1 / odds), axis=-1)[..., ::-1]
    wide = np.concatenate([order] * (case.each // case.count + 1), axis=-1)
    return wide[..., : case.each].astype(np.int64)


def bound(case: Case, inputs: dict[str, npt.NDArray]) -> float:
    """The error granted to the output of a case."""
    (exact,) = reference(case.signature, case.attributes, inputs)
    finite = np.isfinite(exact)

    def largest(array: npt.NDArray) -> float:
        return float(np.max(np.abs(array), where=finite, initial=0.0))

    # Of a handful of numbers the twin may get all right by luck: it sums the features in their order and backwards.
    backwards = {name: inputs[name][..., ::-1] for name in ("x", "inner")}
    twins = [naive(case.signature, case.attributes, given)[0] for given in (inputs, {**inputs, **backwards})]
    unit = float(ml_dtypes.finfo(NUMPY[case.dtype]).eps)
    return 2.0 * max(largest(twin.astype(np.float64) - exact) for twin in twins) + 4.0 * unit * largest(exact)


def cases() -> list[Case]:
    """The matrix, in a fixed order."""
    return list(_cases())


def _cases() -> Iterator[Case]:
    for signature in signatures():
        for dtype in ("float32", "float16", "bfloat16"):
            yield Case(name=f"{signature.op_type}-{dtype}", signature=signature, dtype=dtype, tokens=(19,))
    for activation in ACTIVATIONS:
        wide = Signature(activation=activation, gated=True, bias=True)
        yield Case(name=f"{activation}-wide-range", signature=wide, tokens=(40,), spread=8.0)
    gated, full = Signature(gated=True), Signature(gated=True, bias=True)
    yield from _sizes(gated, full)
    for route in ("one", "skewed", "repeated", "outside"):
        for tokens in (1, 3, 50):
            yield Case(name=f"{route}-{tokens}", signature=full, tokens=(tokens,), route=route, each=3)
    for tokens in ((), (0,), (2, 0), (1, 1), (2, 3, 4)):
        yield Case(name=f"tokens-{'x'.join(map(str, tokens))}", signature=full, tokens=tokens)
    for each in (0, 1, 4, 9):
        yield Case(name=f"each-{each}", signature=full, each=each)
    yield Case(name="one-expert", signature=full, count=1, each=1, tokens=(70,))
    yield Case(name="more-rows-than-a-block", signature=full, route="one", tokens=(401,), hidden=40, inner=24)
    yield Case(name="very-deep", signature=gated, count=1, each=1, tokens=(20,), hidden=9000, inner=8)
    yield Case(name="many-experts", signature=gated, count=64, each=8, tokens=(30,))
    for name, attributes in (
        ("clamped", CLAMPED),
        ("limit-0", Attributes(limit=0.0)),
        ("alpha-0", Attributes(alpha=0.0)),
        ("offset", Attributes(offset=-0.5)),
    ):
        yield Case(name=name, signature=full, attributes=attributes, spread=6.0, tokens=(33,))
        yield Case(name=f"{name}-one-token", signature=full, attributes=attributes, spread=6.0, tokens=(1,))


def _sizes(gated: Signature, full: Signature) -> Iterator[Case]:
    """Sizes around those of vectors, panels and blocks, in a few tokens and in many."""
    for size in (1, 2, 3, 5, 8, 15, 16, 17, 33, 63, 64, 65, 127, 130):
        for tokens in (1, 2, 5, 61):
            yield Case(name=f"hidden-{size}-{tokens}", signature=full, hidden=size, tokens=(tokens,))
            yield Case(name=f"inner-{size}-{tokens}", signature=gated, inner=size, tokens=(tokens,))
    for dtype in ("float32", "float16", "bfloat16"):
        for tokens in (1, 4, 5, 12, 97, 300):
            name = f"large-{tokens}-{dtype}"
            yield Case(name=name, signature=full, hidden=301, inner=259, tokens=(tokens,), dtype=dtype)
    for size in (2, 34, 62, 130, 262):  # pairs of bfloat16
        for tokens in (1, 5, 61):
            yield Case(
                name=f"pairs-{size}-{tokens}", signature=full, hidden=size, tokens=(tokens,), count=2, dtype="bfloat16"
            )
    yield Case(name="deep-hidden", signature=gated, hidden=1100, inner=24, tokens=(40,), count=2)
    yield Case(name="deep-inner", signature=full, hidden=24, inner=1100, tokens=(40,), count=2)


def random_case(seed: int) -> Case:
    """A random call, the same for the same seed."""
    rng = np.random.default_rng(seed)

    def size(low: int, high: int) -> int:
        return int(np.exp(rng.uniform(np.log(low), np.log(high + 1))))

    names = signatures()
    signature = names[int(rng.integers(len(names)))]
    numbers = {"alpha": 1.702, "limit": 2.5, "offset": 1.0}
    given = {name: numbers[name] for name in signature.attributes if rng.random() < 0.4}
    rank = int(rng.integers(1, 3))
    return Case(
        name=f"random-{seed}",
        signature=signature,
        attributes=Attributes(**given),
        tokens=tuple(0 if rng.random() < 0.03 else size(1, 200 if rank == 1 else 14) for _ in range(rank)),
        each=size(1, 6),
        count=size(1, 20),
        hidden=size(1, 200),
        inner=size(1, 200),
        route=("random", "random", "one", "skewed", "repeated", "outside")[int(rng.integers(6))],
        dtype=("float32", "float16", "bfloat16")[int(rng.integers(3))],
        spread=float(rng.choice([0.01, 1.0, 1.0, 10.0])),
        seed=seed,
    )
