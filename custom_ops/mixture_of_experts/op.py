"""``deployml::MixtureOfExperts``: the operator as data, its float64 reference and its naive twin.

The experts of a mixture behind its router: which experts a token goes to, and with what weights, are inputs. The
operator has one name per signature, because an ONNX function body (the fallback that a model carries) cannot have
absent inputs::

    MixtureOfExperts_{silu|gelu|gelu_tanh|relu|relu_squared}[_gated][_bias]

Inputs, in this order. T is one float type (float32, float16 or bfloat16); there are N tokens (any leading axes), K
experts a token, E experts of inner size I, and H features::

    x           T      (..., H)
    experts     int64  (..., K)                      an index outside [0, E) adds nothing
    weights     T      (..., K)                      factor on what the expert gives
    inner       T      (E, I, H), _gated (E, 2I, H)  rows [0, I) make the gate, [I, 2I) the value
    outer       T      (E, H, I)
    inner_bias  T      (E, I), _gated (E, 2I)        (_bias)
    outer_bias  T      (E, H)                        (_bias)

The output has the shape of x::

    output[n]    = sum over k of weights[n, k] * expert(experts[n, k], x[n])
    expert(e, x) = outer[e] @ a + outer_bias[e]
    a            = act(h)                                                        h = inner[e] @ x + inner_bias[e]
    a            = act(min(g, limit)) * (clamp(u, -limit, limit) + offset)       _gated: g, u = the halves of h

silu is ``g * sigmoid(alpha * g)``; gelu is exact, gelu_tanh its tanh form. Arithmetic is float32, rounded to T once
(on a GPU, half types also where the second product takes its input).
Shazeer and others, Outrageously Large Neural Networks, 2017; Shazeer, GLU Variants Improve Transformer, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from ...runtime.errors import InputError
from ..libraries import DOMAIN

__all__ = [
    "ACTIVATIONS",
    "ATTRIBUTES",
    "DTYPES",
    "NAME",
    "Activation",
    "Attributes",
    "Signature",
    "naive",
    "reference",
    "signatures",
]

NAME: Final = "MixtureOfExperts"
Array = npt.NDArray[np.generic]
Product = Callable[[npt.NDArray, npt.NDArray], npt.NDArray]  #: of a matrix and a vector
Activation = Literal["silu", "gelu", "gelu_tanh", "relu", "relu_squared"]

#: Activations a name may have.
ACTIVATIONS: Final[tuple[Activation, ...]] = get_args(Activation)

#: Types T may take.
DTYPES: Final = ("float32", "float16", "bfloat16")

#: Attribute name to its ONNX type, of all signatures together; :attr:`Signature.attributes` says which one has which.
ATTRIBUTES: Final[dict[str, Literal["FLOAT"]]] = {"alpha": "FLOAT", "limit": "FLOAT", "offset": "FLOAT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """The numbers of a call. A signature that lacks one of them is only called with its default.

    Attributes:
        alpha: Factor inside silu's sigmoid.
        limit: Bound on gate (from above) and value (from both sides); infinity is none. (_gated)
        offset: What is added to the value. (_gated)

    Raises:
        InputError: for a number outside its range.
    """

    alpha: float = 1.0
    limit: float = math.inf
    offset: float = 0.0

    def __post_init__(self) -> None:
        ranges = {"alpha": math.isfinite(self.alpha) and self.alpha >= 0, "offset": math.isfinite(self.offset)}
        for name, good in {**ranges, "limit": self.limit >= 0}.items():
            if not good:
                raise InputError(
                    f"attribute {name} of {NAME} is {getattr(self, name)}",
                    hint="alpha is finite and not negative, limit is not negative, offset is finite",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What the experts of a call are made of, and so its operator name.

    Attributes:
        activation: Between the two products.
        gated: The first product makes a gate, which is activated, and a value it is multiplied with.
        bias: Both products have one.

    Raises:
        InputError: for another activation.
    """

    activation: Activation = "silu"
    gated: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise InputError(
                f"'{self.activation}' is no activation of {NAME}", hint=f"take one of {', '.join(ACTIVATIONS)}"
            )

    @property
    def op_type(self) -> str:
        """Name of the operator, such as "MixtureOfExperts_silu_gated"."""
        return "_".join([NAME, self.activation, *(part for part in ("gated", "bias") if getattr(self, part))])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, in order."""
        given = ("x", "experts", "weights", "inner", "outer")
        return (*given, "inner_bias", "outer_bias") if self.bias else given

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return ("output",)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes a node of this signature has."""
        return (*(("alpha",) if self.activation == "silu" else ()), *(("limit", "offset") if self.gated else ()))

    @classmethod
    def of(cls, op_type: str) -> Signature:
        """Read a signature back from an operator name.

        Raises:
            InputError: if the name is none of this operator's.
        """
        found = next((signature for signature in signatures() if signature.op_type == op_type), None)
        if found is None:
            raise InputError(
                f"'{op_type}' is no name of {DOMAIN}::{NAME}",
                hint=f"write {NAME}_, one of {', '.join(ACTIVATIONS)}, and then, in this order, any of: _gated _bias",
            )
        return found

    def check(self, attributes: Attributes) -> None:
        """Make sure that no attribute is set that this signature lacks.

        Raises:
            InputError: if one is.
        """
        for field in fields(Attributes):
            value = getattr(attributes, field.name)
            if field.name not in self.attributes and value != field.default:
                raise InputError(
                    f"{self.op_type} has no attribute {field.name}, {value} was given",
                    hint="alpha belongs to silu, limit and offset belong to _gated",
                )


def signatures() -> tuple[Signature, ...]:
    """Every signature the library registers."""
    flags = (False, True)
    return tuple(Signature(activation=a, gated=g, bias=b) for a, g, b in product(ACTIVATIONS, flags, flags))


def reference(
    signature: Signature, attributes: Attributes, inputs: Mapping[str, Array]
) -> tuple[npt.NDArray[np.float64], ...]:
    """The meaning of the operator, in float64, written to be obviously right.

    Args:
        signature: Which inputs there are, and the activation.
        attributes: Those of the node.
        inputs: Arrays under the names of ``signature.inputs``.

    Returns:
        The output.
    """
    return (_mix(signature, attributes, inputs, np.dtype(np.float64)),)


def naive(signature: Signature, attributes: Attributes, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
    """The same in float32 with sums as a plain loop makes them, rounded to the type of ``x``: the yardstick for
    kernel errors."""
    made = _mix(signature, attributes, inputs, np.dtype(np.float32), multiply=_one_by_one)
    return (made.astype(inputs["x"].dtype),)


def _one_by_one(matrix: npt.NDArray, x: npt.NDArray) -> npt.NDArray:
    """The product, its terms added one after the other."""
    sums = np.zeros((len(matrix), 1), matrix.dtype)
    return np.concatenate([sums, matrix * x], axis=1).cumsum(axis=1, dtype=matrix.dtype)[:, -1]


def _mix(
    signature: Signature,
    attributes: Attributes,
    inputs: Mapping[str, Array],
    dtype: np.dtype,
    *,
    multiply: Product = np.matmul,
) -> npt.NDArray:
    given = {name: inputs[name].astype(dtype) for name in signature.inputs if name != "experts"}
    count = math.prod(given["x"].shape[:-1])
    tokens, weights, experts = (
        array.reshape(count, array.shape[-1]) for array in (given["x"], given["weights"], inputs["experts"])
    )
    output = np.zeros_like(tokens)
    with np.errstate(all="ignore"):
        for n, chosen in enumerate(experts):
            for k, expert in enumerate(chosen):
                if 0 <= expert < len(given["inner"]):
                    output[n] += weights[n, k] * _expert(signature, attributes, given, int(expert), tokens[n], multiply)
    return output.reshape(given["x"].shape)


def _expert(
    signature: Signature,
    attributes: Attributes,
    given: Mapping[str, npt.NDArray],
    expert: int,
    x: npt.NDArray,
    multiply: Product,
) -> npt.NDArray:
    """What one expert makes of one token."""
    h = multiply(given["inner"][expert], x)
    if signature.bias:
        h = h + given["inner_bias"][expert]
    # Attributes are float32, whatever the arithmetic.
    alpha, limit, offset = (x.dtype.type(np.float32(getattr(attributes, name))) for name in ATTRIBUTES)
    if signature.gated:
        gate, value = np.split(h, 2)
        a = _activate(signature.activation, np.minimum(gate, limit), alpha) * (np.clip(value, -limit, limit) + offset)
    else:
        a = _activate(signature.activation, h, alpha)
    y = multiply(given["outer"][expert], a)
    return y + given["outer_bias"][expert] if signature.bias else y


def _activate(activation: Activation, x: npt.NDArray, alpha: np.floating) -> npt.NDArray:
    if activation == "silu":
        return x * (1 / (1 + np.exp(-alpha * x)))
    if activation == "gelu":
        root = x.dtype.type(math.sqrt(0.5))
        return x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x * root)) / 2
    if activation == "gelu_tanh":
        root, cubic = x.dtype.type(math.sqrt(2 / math.pi)), x.dtype.type(0.044715)
        return x * (1 + np.tanh(root * (x + cubic * x * x * x))) / 2
    positive = np.maximum(x, 0)
    return positive if activation == "relu" else positive * positive
