"""Run a case of the matrix through onnxruntime and compare it with the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .body import add_function, make_node
from .cases import Case, bound, make_inputs
from .op import Attributes, Signature, reference

if TYPE_CHECKING:
    from onnxruntime import SessionOptions

__all__ = ["CaseResult", "check_case", "one_node_model", "run_case"]

_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """What a case gave: the largest error against float64, what was granted, and whether NaN and infinity sit where
    they must."""

    case: Case
    error: float
    granted: float
    special_match: bool

    @property
    def passed(self) -> bool:
        """Whether the error is within its bound."""
        return self.special_match and self.error <= self.granted


def one_node_model(
    signature: Signature,
    attributes: Attributes,
    ranks: Mapping[str, int],
    dtype: str = "float32",
    *,
    opset: int = 20,
) -> bytes:
    """A model of one node with the operator and its function body, as bytes.

    Inputs and outputs are float32 whatever the type of the operator: casts stand around it, because onnxruntime's
    Python interface has no bfloat16 arrays. Dimensions are symbolic; in float32 no casts stand there.
    """
    wide, narrow = ir.TensorType(ir.DataType.FLOAT), dtype != "float32"
    nodes: list[ir.Node] = []

    def cast(value: ir.Value, name: str, to: ir.DataType) -> ir.Value:
        nodes.append(ir.node("Cast", [value], {"to": int(to)}))
        nodes[-1].outputs[0].name = name
        return nodes[-1].outputs[0]

    values = {
        name: ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.INT64) if name == "experts" else wide,
            shape=ir.Shape([f"{name}_{i}" for i in range(ranks[name])]),
        )
        for name in signature.inputs
    }
    fed = {
        name: cast(value, f"{name}_narrow", _TYPES[dtype]) if narrow and name != "experts" else value
        for name, value in values.items()
    }
    main = make_node(signature, fed, attributes, name="experts")
    nodes.append(main)
    output = main.outputs[0]
    output.name = "output_narrow" if narrow else "output"
    if narrow:
        output = cast(output, "output", ir.DataType.FLOAT)
    output.type = wide
    graph = ir.Graph(list(values.values()), [output], nodes=nodes, opset_imports={"": opset}, name="one_node")
    model = ir.Model(graph, ir_version=9)
    add_function(model, signature)
    return ir.to_proto(model).SerializeToString()


def run_case(
    case: Case,
    options: SessionOptions,
    inputs: Mapping[str, npt.NDArray] | None = None,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> npt.NDArray:
    """Run a case in a new session with these options (which have the library registered, or not)."""
    import onnxruntime

    given = inputs if inputs is not None else make_inputs(case)
    ranks = {name: array.ndim for name, array in given.items()}
    model = one_node_model(case.signature, case.attributes, ranks, case.dtype)
    session = onnxruntime.InferenceSession(model, options, providers=list(providers))
    fed = {name: array if name == "experts" else array.astype(np.float32) for name, array in given.items()}
    return session.run(None, fed)[0]


def check_case(
    case: Case, options: SessionOptions, *, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> CaseResult:
    """Run a case and compare it with :func:`~.op.reference`."""
    inputs = make_inputs(case)
    (exact,) = reference(case.signature, case.attributes, inputs)
    found = run_case(case, options, inputs, providers=providers)
    if found.shape != exact.shape:
        raise AssertionError(f"{case.name}: output has shape {found.shape}, expected {exact.shape}")
    finite = np.isfinite(exact)
    return CaseResult(
        case=case,
        error=float(np.max(np.abs(found - exact), where=finite, initial=0.0)),
        granted=bound(case, inputs),
        special_match=bool(np.array_equal(np.isfinite(found), finite)),
    )
