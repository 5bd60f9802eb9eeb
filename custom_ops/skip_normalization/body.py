"""The ONNX form of the operator: node, and the function body a model carries as its fallback.

Where the library is registered, onnxruntime runs the kernel; where it is not, it inlines the function: a sum and the
standard operators of a norm in float32. The body refers to the node's epsilon, so one function serves all nodes of a
signature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from ...runtime.errors import UnsupportedError
from ..libraries import DOMAIN
from .op import Signature

__all__ = ["OLDEST_OPSET", "VERSION", "add_function", "function_body", "make_node"]

#: Version of the domain's operator set.
VERSION: Final = 1

#: Oldest ai.onnx version the body can be written in: that of LayerNormalization.
OLDEST_OPSET: Final = 17


def make_node(
    signature: Signature, inputs: Mapping[str, ir.Value], epsilon: float, *, name: str | None = None
) -> ir.Node:
    """A node of the operator, not yet in any graph.

    Args:
        signature: Which inputs are given.
        inputs: Values under the names of ``signature.inputs``.
        epsilon: The attribute.
        name: Name of the node.

    Raises:
        KeyError: if an input of the signature is missing.
    """
    return ir.Node(
        DOMAIN,
        signature.op_type,
        [inputs[name] for name in signature.inputs],
        [ir.AttrFloat32("epsilon", epsilon)],
        num_outputs=len(signature.outputs),
        name=name,
    )


def add_function(model: ir.Model, signature: Signature) -> None:
    """Make sure the model imports the domain and carries the function body of this signature."""
    model.graph.opset_imports[DOMAIN] = VERSION
    function = function_body(signature, opset=model.graph.opset_imports.get("", OLDEST_OPSET))
    model.functions.setdefault(function.identifier(), function)


def function_body(signature: Signature, *, opset: int = 18) -> ir.Function:
    """The operator of this signature as an ONNX function of standard operators.

    Args:
        signature: Which inputs the function has.
        opset: ai.onnx version of the model it goes into.

    Raises:
        UnsupportedError: for an opset below 17.
    """
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"{signature.op_type} has no function body in opset {opset}", hint=f"use opset {OLDEST_OPSET} or newer"
        )
    inputs = {name: ir.Value(name=name) for name in signature.inputs}
    tape = Tape()
    wide = {name: tape.op("Cast", [value], {"to": int(ir.DataType.FLOAT)}) for name, value in inputs.items()}
    total = tape.op("Sum", [wide[name] for name in ("x", "skip", "bias") if name in wide])
    normed = (_root_mean_square if signature.rms else _layer)(tape, total, wide, opset)
    outputs = [tape.op("CastLike", [value, inputs["x"]]) for value in (normed, total)[: len(signature.outputs)]]
    for i, node in enumerate(tape.nodes):
        node.outputs[0].name = f"v{i}"
    for value, name in zip(outputs, signature.outputs, strict=True):
        value.name = name
    graph = ir.Graph(
        list(inputs.values()), outputs, nodes=tape.nodes, opset_imports={"": opset}, name=signature.op_type
    )
    parameters = [ir.Attr("epsilon", ir.AttributeType.FLOAT, None)]
    return ir.Function(DOMAIN, signature.op_type, graph=graph, attributes=parameters)


def _layer(tape: Tape, total: ir.Value, wide: Mapping[str, ir.Value], opset: int) -> ir.Value:
    del opset
    given = [total, wide["scale"], *([wide["shift"]] if "shift" in wide else [])]
    return tape.op("LayerNormalization", given, {"axis": -1, "epsilon": _epsilon("epsilon")})


def _epsilon(name: str) -> ir.Attr:
    """The node's epsilon as an attribute of this name."""
    return ir.RefAttr(name, "epsilon", ir.AttributeType.FLOAT)


def _root_mean_square(tape: Tape, total: ir.Value, wide: Mapping[str, ir.Value], opset: int) -> ir.Value:
    squares = tape.op("Mul", [total, total])
    if opset < 18:  # axes became an input
        mean = tape.op("ReduceMean", [squares], {"axes": [-1]})
    else:
        mean = tape.op("ReduceMean", [squares, tape.op("Constant", [], {"value": ir.tensor(np.array([-1]))})])
    epsilon = tape.op("Constant", [], {"value_float": _epsilon("value_float")})
    root = tape.op("Sqrt", [tape.op("Add", [mean, epsilon])])
    return tape.op("Mul", [tape.op("Div", [total, root]), wide["scale"]])
