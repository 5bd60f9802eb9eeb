"""The ONNX form of the operator: node, and the function body a model carries as its fallback.

Where the library is registered, onnxruntime runs the kernel; where it is not, it inlines the function: a Loop over
the experts that were chosen at all, and in each pass only the tokens that chose it. No more than one expert's weights
are widened to float32 at a time, and the largest tensor has one row of H numbers per token and chosen expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from ...runtime.errors import UnsupportedError
from ..libraries import DOMAIN
from .op import Activation, Attributes, Signature

__all__ = ["OLDEST_OPSET", "VERSION", "add_function", "function_body", "make_node"]

#: Version of the domain's operator set.
VERSION: Final = 1

#: Oldest ai.onnx version the body can be written in: sizes are taken by Shape's start and end, axes are inputs.
OLDEST_OPSET: Final = 18


def make_node(
    signature: Signature,
    inputs: Mapping[str, ir.Value],
    attributes: Attributes | None = None,
    *,
    name: str | None = None,
) -> ir.Node:
    """A node of the operator, not yet in any graph.

    Args:
        signature: Which inputs are given.
        inputs: Values under the names of ``signature.inputs``.
        attributes: Those the signature has are written to the node; None stands for the defaults.
        name: Name of the node.

    Raises:
        KeyError: if an input of the signature is missing.
        InputError: if an attribute is set that the signature lacks.
    """
    given = attributes or Attributes()
    signature.check(given)
    return ir.Node(
        DOMAIN,
        signature.op_type,
        [inputs[name] for name in signature.inputs],
        [ir.AttrFloat32(key, getattr(given, key)) for key in signature.attributes],
        num_outputs=len(signature.outputs),
        name=name,
    )


def add_function(model: ir.Model, signature: Signature) -> None:
    """Make sure the model imports the domain and carries the function body of this signature."""
    model.graph.opset_imports[DOMAIN] = VERSION
    function = function_body(signature, opset=model.graph.opset_imports.get("", OLDEST_OPSET))
    model.functions.setdefault(function.identifier(), function)


def function_body(signature: Signature, *, opset: int = OLDEST_OPSET) -> ir.Function:
    """The operator of this signature as an ONNX function of standard operators.

    Args:
        signature: Which inputs the function has.
        opset: ai.onnx version of the model it goes into.

    Raises:
        UnsupportedError: for an opset below 18.
    """
    if opset < OLDEST_OPSET:
        raise UnsupportedError(
            f"{signature.op_type} has no function body in opset {opset}", hint=f"use opset {OLDEST_OPSET} or newer"
        )
    inputs = {name: ir.Value(name=name) for name in signature.inputs}
    tape = _Writer("v")
    output = _mix(tape, signature, inputs)
    output.name = signature.outputs[0]
    graph = ir.Graph(
        list(inputs.values()), [output], nodes=tape.nodes, opset_imports={"": opset}, name=signature.op_type
    )
    parameters = [ir.Attr(name, ir.AttributeType.FLOAT, None) for name in signature.attributes]
    return ir.Function(DOMAIN, signature.op_type, graph=graph, attributes=parameters)


class _Writer(Tape):
    """A tape that names what it makes after a prefix of its own."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def make(self, op_type: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        value = self.op(op_type, inputs, attributes)
        value.name = f"{self.prefix}{len(self.nodes)}"
        return value

    def floats(self, value: ir.Value) -> ir.Value:
        return self.make("Cast", value, to=int(ir.DataType.FLOAT))

    def number(self, value: float) -> ir.Value:
        return self.make("Constant", value=ir.tensor(np.float32(value)))

    def ints(self, *values: int) -> ir.Value:
        return self.make("Constant", value=ir.tensor(np.array(values, np.int64)))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        return self.make("Shape", value, start=axis, end=axis + 1)


def _mix(tape: _Writer, signature: Signature, inputs: Mapping[str, ir.Value]) -> ir.Value:
    # Attributes are read here and not in the loop: what a subgraph of a function may refer to differs between readers.
    numbers = {
        name: tape.make("Constant", value_float=ir.RefAttr("value_float", name, ir.AttributeType.FLOAT))
        for name in signature.attributes
    }
    tokens = tape.make("Flatten", tape.floats(inputs["x"]), axis=-1)
    chosen = tape.make("Flatten", inputs["experts"], axis=-1)
    flat = tape.ints(-1)
    outer = {
        **{name: inputs[name] for name in signature.inputs[3:]},
        **numbers,
        "tokens": tokens,
        "each": tape.size(chosen, 1),
        "flat": flat,
        "experts": tape.make("Reshape", chosen, flat),
        "weights": tape.make("Reshape", tape.floats(inputs["weights"]), flat),
    }
    outer["present"] = _present(tape, outer["experts"], tape.size(inputs["inner"], 0))
    slots, width = tape.make("Shape", outer["experts"]), tape.size(tokens, 1)
    empty = tape.make("ConstantOfShape", tape.make("Concat", slots, width, axis=0))
    each = tape.make("Concat", tape.size(chosen, 0), outer["each"], width, axis=0)
    filled = tape.make(
        "Loop",
        tape.make("Size", outer["present"]),
        tape.make("Constant", value=ir.tensor(np.array(True))),
        empty,
        body=_loop(signature, outer),
    )
    total = tape.make("ReduceSum", tape.make("Reshape", filled, each, allowzero=1), tape.ints(1), keepdims=0)
    shaped = tape.make("Reshape", total, tape.make("Shape", inputs["x"]), allowzero=1)
    return tape.make("CastLike", shaped, inputs["x"])


def _present(tape: _Writer, experts: ir.Value, count: ir.Value) -> ir.Value:
    """The experts that some token chose, each once; indices that name none are left out."""
    there = tape.make("And", tape.make("GreaterOrEqual", experts, tape.ints(0)), tape.make("Less", experts, count))
    named = tape.make("Compress", experts, there)
    return tape.make("Unique", named)


def _loop(signature: Signature, outer: Mapping[str, ir.Value]) -> ir.Graph:
    """One expert: the rows of its tokens are computed and put where their slots are."""
    turn = ir.Value(name="turn", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
    go = ir.Value(name="go", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    filled = ir.Value(name="filled", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([None, None]))
    tape = _Writer("e")
    expert = tape.make("Gather", outer["present"], turn)
    slots = tape.make("Reshape", tape.make("NonZero", tape.make("Equal", outer["experts"], expert)), outer["flat"])
    rows = tape.make("Gather", outer["tokens"], tape.make("Div", slots, outer["each"]))

    def product(rows: ir.Value, which: str) -> ir.Value:
        parts = [which, *([f"{which}_bias"] if signature.bias else [])]
        own = [tape.floats(tape.make("Gather", outer[part], expert)) for part in parts]
        return tape.make("Gemm", rows, *own, transB=1)

    made = product(_between(tape, signature, product(rows, "inner"), outer), "outer")
    last = tape.ints(-1)
    factor = tape.make("Unsqueeze", tape.make("Gather", outer["weights"], slots), last)
    places = tape.make("Unsqueeze", slots, last)
    done = tape.make("ScatterND", filled, places, tape.make("Mul", made, factor))
    done.type = ir.TensorType(ir.DataType.FLOAT)
    again = tape.make("Identity", go)
    again.type = ir.TensorType(ir.DataType.BOOL)
    return ir.Graph([turn, go, filled], [again, done], nodes=tape.nodes, name="one_expert")


def _between(tape: _Writer, signature: Signature, h: ir.Value, outer: Mapping[str, ir.Value]) -> ir.Value:
    """What stands between the two products."""
    activate = _ACTIVATIONS[signature.activation]
    if not signature.gated:
        return activate(tape, h, outer)
    gate, value = _halves(tape, h)
    limit = outer["limit"]
    bounded = tape.make("Max", tape.make("Min", value, limit), tape.make("Neg", limit))
    activated = activate(tape, tape.make("Min", gate, limit), outer)
    return tape.make("Mul", activated, tape.make("Add", bounded, outer["offset"]))


def _halves(tape: _Writer, h: ir.Value) -> Sequence[ir.Value]:
    first, last = tape.ints(0), tape.ints(1)
    width = tape.size(h, 1)
    half = tape.make("Div", width, tape.ints(2))
    return tape.make("Slice", h, first, half, last), tape.make("Slice", h, half, width, last)


def _silu(tape: _Writer, x: ir.Value, outer: Mapping[str, ir.Value]) -> ir.Value:
    return tape.make("Mul", x, tape.make("Sigmoid", tape.make("Mul", x, outer["alpha"])))


def _half_of(tape: _Writer, x: ir.Value, odd: ir.Value) -> ir.Value:
    return tape.make("Mul", tape.make("Mul", x, tape.number(0.5)), tape.make("Add", odd, tape.number(1.0)))


def _gelu(tape: _Writer, x: ir.Value, outer: Mapping[str, ir.Value]) -> ir.Value:
    del outer
    return _half_of(tape, x, tape.make("Erf", tape.make("Mul", x, tape.number(math.sqrt(0.5)))))


def _gelu_tanh(tape: _Writer, x: ir.Value, outer: Mapping[str, ir.Value]) -> ir.Value:
    del outer
    cube = tape.make("Mul", tape.make("Mul", x, x), tape.make("Mul", x, tape.number(0.044715)))
    inside = tape.make("Mul", tape.make("Add", x, cube), tape.number(math.sqrt(2 / math.pi)))
    return _half_of(tape, x, tape.make("Tanh", inside))


def _relu(tape: _Writer, x: ir.Value, outer: Mapping[str, ir.Value]) -> ir.Value:
    del outer
    return tape.make("Relu", x)


def _relu_squared(tape: _Writer, x: ir.Value, outer: Mapping[str, ir.Value]) -> ir.Value:
    positive = _relu(tape, x, outer)
    return tape.make("Mul", positive, positive)


_ACTIVATIONS: Final[Mapping[Activation, Callable[[_Writer, ir.Value, Mapping[str, ir.Value]], ir.Value]]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
    "relu_squared": _relu_squared,
}
