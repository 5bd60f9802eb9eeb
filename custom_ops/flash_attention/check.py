"""Run a case of the matrix through onnxruntime and compare it with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..libraries import DOMAIN
from .body import VERSION, add_function, make_node
from .cases import Case, bound, make_inputs
from .op import Attributes, Signature, reference

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

__all__ = ["CaseResult", "check_case", "one_node_model", "run_case"]

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What a case gave: largest error against float64, what was granted, and whether NaN sits where it must."""

    case: Case
    error: float
    granted: float
    nan_match: bool

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound."""
        return self.nan_match and self.error <= self.granted


def one_node_model(
    signature: Signature,
    attributes: Attributes,
    inputs: Mapping[str, Any],
    dtype: str = "float32",
    *,
    body: bool = True,
) -> bytes:
    """A model of one node with the operator and, if wanted, its function body, as bytes.

    Inputs and outputs are float32 whatever the type of the operator: casts stand around it, because onnxruntime's
    Python interface has no bfloat16 arrays. Dimensions are symbolic.
    """
    values, nodes, fed = {}, [], {}
    for name, array in inputs.items():
        kind = _kind(name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(kind or ir.DataType.FLOAT),
            shape=ir.Shape([f"{name}_{i}" for i in range(array.ndim)]),
        )
        values[name] = value
        fed[name] = value
        if kind is None and dtype != "float32":
            nodes.append(ir.node("Cast", [value], {"to": int(_TYPES[dtype])}))
            fed[name] = nodes[-1].outputs[0]
            fed[name].name = f"{name}_narrow"
    main = make_node(signature, fed, attributes, name="attention")
    nodes.append(main)
    outputs = []
    for value, name in zip(main.outputs, signature.outputs, strict=True):
        value.name = f"{name}_narrow"
        nodes.append(ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}))
        outputs.append(nodes[-1].outputs[0])
        outputs[-1].name, outputs[-1].type = name, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(list(values.values()), outputs, nodes=nodes, opset_imports={"": 20}, name="one_node")
    model = ir.Model(graph, ir_version=9)
    model.graph.opset_imports[DOMAIN] = VERSION
    if body:
        add_function(model, signature)
    return ir.to_proto(model).SerializeToString()


def _kind(name: str) -> ir.DataType | None:
    return {"mask": ir.DataType.BOOL, "key_lengths": ir.DataType.INT32}.get(name)


def run_case(
    case: Case,
    options: SessionOptions,
    inputs: Mapping[str, npt.NDArray] | None = None,
    *,
    body: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> list[npt.NDArray]:
    """Run a case in a new session with these options (which have the library registered, or not)."""
    import onnxruntime

    given = inputs if inputs is not None else make_inputs(case)
    model = one_node_model(case.signature, case.attributes, given, case.dtype, body=body)
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    feeds = {name: array if _kind(name) else array.astype(np.float32) for name, array in given.items()}
    return session.run(None, feeds)


def check_case(
    case: Case, options: SessionOptions, *, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> CaseResult:
    """Run a case and compare it with :func:`~.op.reference`."""
    inputs = make_inputs(case)
    exact = reference(case.signature, case.attributes, inputs)
    found = run_case(case, options, inputs, providers=providers)
    error, matching = 0.0, True
    for x, y in zip(found, exact, strict=True):
        if x.shape != y.shape:
            raise AssertionError(f"{case.name}: output has shape {x.shape}, expected {y.shape}")
        matching &= bool(np.array_equal(np.isnan(x), np.isnan(y)))
        error = max(error, float(np.max(np.abs(x - y), initial=0.0)))
    return CaseResult(case=case, error=error, granted=bound(case, inputs), nan_match=matching)
