"""The case matrix of SkipNormalization: what tests and fuzzing run.

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

from .op import Signature, naive, reference, signatures

__all__ = ["NUMPY", "Case", "bound", "cases", "make_inputs", "random_case"]

DType = Literal["float32", "float16", "bfloat16"]

#: Type name to its numpy type.
NUMPY: Final[dict[str, Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

#: Axes of skip, as written in a case, to the shape it has beside x of that shape.
_SKIPS: Final = ("same", "last", "one-last", "vector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call.

    Attributes:
        name: What is special about it.
        signature: Which norm, inputs and outputs.
        shape: Shape of x.
        skip: "same" shape, "last" two axes, the same with "one-last", or a "vector".
        dtype: Type of the tensors.
        mean, spread: Of the numbers in x.
        epsilon: The attribute.
        seed: Of the random inputs.
    """

    name: str
    signature: Signature = field(default_factory=Signature)
    shape: tuple[int, ...] = (2, 5, 64)
    skip: str = "same"
    dtype: DType = "float32"
    mean: float = 0.0
    spread: float = 1.0
    epsilon: float = 1e-5
    seed: int = 0

    @property
    def skip_shape(self) -> tuple[int, ...]:
        """Shape of skip."""
        last = self.shape[-2:]
        return {"same": self.shape, "last": last, "one-last": (1, *last), "vector": self.shape[-1:]}[self.skip]


def make_inputs(case: Case) -> dict[str, npt.NDArray]:
    """The inputs of a case, by name, in the operator's order."""
    rng = np.random.default_rng([case.seed, *case.shape])
    width = case.shape[-1]
    shapes = {"x": case.shape, "skip": case.skip_shape} | dict.fromkeys(("scale", "shift", "bias"), (width,))

    def draw(name: str) -> npt.NDArray:
        numbers = rng.standard_normal(shapes[name])
        if name == "x":
            numbers = numbers * case.spread + case.mean
        return numbers.astype(np.float32).astype(NUMPY[case.dtype])

    return {name: draw(name) for name in case.signature.inputs}


def bound(case: Case, inputs: dict[str, npt.NDArray]) -> tuple[float, ...]:
    """The error granted to each output of a case."""
    dtype = NUMPY[case.dtype]
    unit = float(ml_dtypes.finfo(dtype).eps)
    granted = []
    exact, twin = reference(case.signature, case.epsilon, inputs), naive(case.signature, case.epsilon, inputs)
    for x, y in zip(exact, twin, strict=True):
        finite = np.isfinite(x)
        error = float(np.max(np.abs(y.astype(np.float64) - x), where=finite, initial=0.0))
        granted.append(2.0 * error + 4.0 * unit * float(np.max(np.abs(x), where=finite, initial=0.0)))
    return tuple(granted)


def cases() -> list[Case]:
    """The matrix, in a fixed order."""
    return list(_cases())


def _cases() -> Iterator[Case]:
    for signature in signatures():
        for dtype in ("float32", "float16", "bfloat16"):
            yield Case(name=f"{signature.op_type}-{dtype}", signature=signature, shape=(2, 3, 77), dtype=dtype)
    full, rms = Signature(shift=True, bias=True, sum=True), Signature(rms=True)
    for width in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 127, 768, 1023, 1030):
        yield Case(name=f"width-{width}", signature=full, shape=(3, width))
        yield Case(name=f"width-{width}-rms", signature=rms, shape=(3, width))
    for skip in _SKIPS:
        yield Case(name=f"skip-{skip}", signature=full, shape=(3, 4, 40), skip=skip)
        yield Case(name=f"skip-{skip}-rms-float16", signature=rms, shape=(2, 3, 4, 40), skip=skip, dtype="float16")
    for shape in ((0, 5, 16), (2, 0, 16), (16,), (1, 1, 1, 1, 8), (300, 200)):
        yield Case(name=f"shape-{'x'.join(map(str, shape))}", signature=full, shape=shape)
    yield Case(name="large-mean", signature=full, shape=(4, 768), mean=1000.0, spread=0.01)
    yield Case(name="large-values", signature=rms, shape=(4, 768), spread=1e15)
    yield Case(name="tiny-values", signature=full, shape=(4, 100), spread=1e-18, epsilon=1e-12)
    yield Case(name="no-epsilon", signature=full, shape=(4, 100), epsilon=0.0)
    yield Case(name="great-epsilon", signature=rms, shape=(4, 100), epsilon=10.0)


def random_case(seed: int) -> Case:
    """A random call, the same for the same seed."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    shape = (*(int(n) for n in rng.integers(0 if rng.random() < 0.05 else 1, 6, rank - 1)), int(rng.integers(1, 1031)))
    wide = tuple(skip for skip in _SKIPS if rank > 2 or skip in ("same", "vector"))
    names = signatures()
    return Case(
        name=f"random-{seed}",
        signature=names[int(rng.integers(len(names)))],
        shape=shape,
        skip=wide[int(rng.integers(len(wide)))],
        dtype=("float32", "float16", "bfloat16")[int(rng.integers(3))],
        mean=float(rng.choice([0.0, 0.0, 3.0, -50.0])),
        spread=float(rng.choice([0.01, 1.0, 1.0, 100.0])),
        epsilon=float(rng.choice([1e-12, 1e-6, 1e-5, 0.1])),
        seed=seed,
    )
