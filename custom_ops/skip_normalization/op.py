"""``deployml::SkipNormalization``: the operator as data, its float64 reference and its naive twin.

A residual sum and the normalisation that reads it. The operator has one name per signature, because an ONNX function
body (the fallback that a model carries) cannot have absent inputs::

    SkipNormalization[_rms][_shift][_bias][_sum]

Inputs are ``x, skip, scale`` and then what the name lists, in that order. With T one float type (float32, float16 or
bfloat16)::

    x      T  (..., H)
    skip   T  the shape of x, or its last axes, with or without ones before them: (1, S, H), (S, H)
    scale  T  (H,)
    shift  T  (H,)  added at the end                     (_shift, layer normalisation only)
    bias   T  (H,)  added to x and skip                  (_bias)

Outputs are ``output`` and with ``_sum`` also ``sum``, both of the shape of x::

    sum    = x + skip + bias
    output = (sum - mean) / sqrt(mean((sum - mean) ** 2) + epsilon) * scale + shift
    output = sum / sqrt(mean(sum ** 2) + epsilon) * scale                     (_rms)

Means run over the last axis. Arithmetic is float32; ``output`` is made of the sum before it is rounded to T.
Ba, Kiros and Hinton, Layer Normalization, 2016; Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ..libraries import DOMAIN

__all__ = ["ATTRIBUTES", "DTYPES", "NAME", "Signature", "naive", "reference", "signatures"]

NAME: Final = "SkipNormalization"
Array = npt.NDArray[np.generic]

#: Types T may take.
DTYPES: Final = ("float32", "float16", "bfloat16")

#: Attribute name to its ONNX type. ``epsilon`` is finite and not negative; the kernel's default is 1e-5.
ATTRIBUTES: Final[dict[str, Literal["INT", "FLOAT"]]] = {"epsilon": "FLOAT"}

#: Parts of a name, in order.
_PARTS: Final = ("rms", "shift", "bias", "sum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Which norm a call computes, which inputs and outputs it has, and so its operator name.

    Attributes:
        rms: Root-mean-square normalisation; otherwise layer normalisation.
        shift, bias: The input of that name is given.
        sum: The sum comes out as well.

    Raises:
        InputError: for a root-mean-square normalisation with shift.
    """

    rms: bool = False
    shift: bool = False
    bias: bool = False
    sum: bool = False

    def __post_init__(self) -> None:
        if self.rms and self.shift:
            raise InputError(f"no {NAME} has both rms and shift", hint="add the shift to its output")

    @property
    def op_type(self) -> str:
        """Name of the operator, such as "SkipNormalization_shift_sum"."""
        return "_".join([NAME, *(part for part in _PARTS if getattr(self, part))])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        return ("x", "skip", "scale", *(part for part in ("shift", "bias") if getattr(self, part)))

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return ("output", "sum") if self.sum else ("output",)

    @classmethod
    def of(cls, op_type: str) -> Signature:
        """Read a signature back from an operator name.

        Raises:
            InputError: if the name is none of this operator's.
        """
        head, *parts = op_type.split("_")
        signature = None
        with suppress(InputError):
            signature = cls(**{part: part in parts for part in _PARTS})
        if head != NAME or signature is None or signature.op_type != op_type:
            raise InputError(
                f"'{op_type}' is no name of {DOMAIN}::{NAME}",
                hint=f"write {NAME} and then, in this order, any of: " + " ".join(f"_{p}" for p in _PARTS),
            )
        return signature


def signatures() -> tuple[Signature, ...]:
    """Every signature the library registers."""
    found = []
    for flags in product((False, True), repeat=len(_PARTS)):
        with suppress(InputError):
            found.append(Signature(**dict(zip(_PARTS, flags, strict=True))))
    return tuple(found)


def reference(signature: Signature, epsilon: float, inputs: Mapping[str, Array]) -> tuple[npt.NDArray[np.float64], ...]:
    """The meaning of the operator, in float64, written to be obviously right.

    Args:
        signature: Which inputs there are.
        epsilon: The node's attribute.
        inputs: Arrays under the names of ``signature.inputs``.

    Returns:
        One array per output of the signature.
    """
    return _normalise(signature, epsilon, inputs, np.dtype(np.float64))


def naive(signature: Signature, epsilon: float, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
    """The same in float32, rounded to the type of ``x``: the yardstick for kernel errors."""
    results = _normalise(signature, epsilon, inputs, np.dtype(np.float32))
    return tuple(result.astype(inputs["x"].dtype) for result in results)


def _normalise(
    signature: Signature, epsilon: float, inputs: Mapping[str, Array], dtype: np.dtype
) -> tuple[npt.NDArray, ...]:
    given = {name: inputs[name].astype(dtype) for name in signature.inputs}
    with np.errstate(all="ignore"):
        total = given["x"] + given["skip"]
        if signature.bias:
            total = total + given["bias"]
        centred = total if signature.rms else total - total.mean(axis=-1, keepdims=True)
        spread = (centred * centred).mean(axis=-1, keepdims=True)
        # The attribute is a float32, whatever the arithmetic.
        output = centred / np.sqrt(spread + dtype.type(np.float32(epsilon))) * given["scale"]
        if signature.shift:
            output = output + given["shift"]
    return (output, total) if signature.sum else (output,)
