"""Writes ONNX nodes for a module that runs on symbolic tensors: the graph, its constants and its spelling."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["Dialect", "Size", "Tape", "key_of"]


@dataclass(frozen=True)
class Dialect:
    """How a graph is spelled where ONNX leaves a choice.

    Attributes:
        opset: Operator set.
        sizes: A length is read by "Shape" with start and end, or by "Gather" from the whole shape.
        reshape: Target shapes are "computed" from lengths, or hold "zeros" and -1 where that says the same.
        constants: "initializer" or "node".
        linear: "matmul", "transposed" (the weight is, in the graph) or "gemm" (over flattened rows).
        pieces: Tensors are taken apart and repeated by "split" (Expand) or "gather".
        attention: A call of scaled_dot_product_attention is kept "whole" as the product's capture does, written in
            "plain" operators as torch's exporter does, or an ai.onnx Attention ("standard").
        norm: Layer norms are one "op" or "plain" operators.
    """

    opset: int = 21
    sizes: str = "Shape"
    reshape: str = "computed"
    constants: str = "initializer"
    linear: str = "matmul"
    pieces: str = "split"
    attention: str = "whole"
    norm: str = "op"

    @staticmethod
    def draw(rng: random.Random, opset: int) -> Dialect:
        """A random spelling for an operator set."""
        return Dialect(
            opset=opset,
            sizes=rng.choice(("Shape", "Gather")),
            reshape=rng.choice(("computed", "zeros")),
            constants=rng.choice(("initializer", "node")),
            linear=rng.choice(("matmul", "matmul", "transposed", "gemm")),
            pieces=rng.choice(("split", "gather")),
            attention=rng.choice(("whole", "whole", "plain", *["standard"] * (opset >= 23))),
            norm=rng.choice(("op", "plain")),
        )

    def __str__(self) -> str:
        return " ".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


class Size:
    """A length known at run time only: integer arithmetic on it writes nodes, when they are read.

    Args:
        tape: Where to.
        write: Writes the length as int64 of shape (1,).
        key: An expression; equal keys are equal lengths.
    """

    def __init__(self, tape: Tape, write: Callable[[], ir.Value], key: str) -> None:
        self.tape, self.key = tape, key
        self._write = write

    @functools.cached_property
    def vector(self) -> ir.Value:
        """The length as int64 of shape (1,)."""
        return self._write()

    def scalar(self) -> ir.Value:
        """The length as int64 of rank 0."""
        return self.tape.op("Squeeze", self.vector, self.tape.const(np.array([0])))

    def _with(self, op: str, other: Size | int) -> Size:
        def write() -> ir.Value:
            return self.tape.op(op, self.vector, self.tape.vector(other))

        return Size(self.tape, write, f"{op}({self.key}, {key_of(other)})")

    def __mul__(self, other: Size | int) -> Size | int:
        return self if other == 1 else self._with("Mul", other)

    def __sub__(self, other: Size | int) -> Size:
        return self._with("Sub", other)

    __rmul__ = __mul__

    def __add__(self, other: Size | int) -> Size:
        return self._with("Add", other)

    def __radd__(self, other: int) -> Size:
        return self._with("Add", other)

    def __rsub__(self, other: int) -> Size:
        def write() -> ir.Value:
            return self.tape.op("Sub", self.tape.vector(other), self.vector)

        return Size(self.tape, write, f"Sub({other}, {self.key})")

    def __floordiv__(self, other: int) -> Size:
        return self._with("Div", other)

    def __mod__(self, other: int) -> Size:
        return self._with("Mod", other)


def key_of(size: Size | int | None) -> str | int | None:
    """What tells whether two lengths are equal."""
    return size.key if isinstance(size, Size) else size


class Tape:
    """The nodes written so far.

    Args:
        dialect: How to spell them.

    Attributes:
        site: The module that nodes written from now on belong to.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.site = ""
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def op(self, op: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> Any:
        """Write a node; ``op`` is a qualified name. Returns its output, or a tuple of several."""
        domain, _, op_type = op.rpartition("::")
        name = f"n{len(self.nodes)}"
        node = ir.node(op_type, inputs, attributes=attributes, domain=domain, num_outputs=outputs, name=name)
        node.metadata_props["deployml.module"] = self.site
        for index, output in enumerate(node.outputs):
            output.name = f"{name}_{index}"
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def const(self, array: np.ndarray) -> ir.Value:
        """A constant."""
        if self.dialect.constants == "node" and array.size < 64:
            return self.op("Constant", value=ir.tensor(array))
        name = f"c{len(self.initializers)}"
        tensor = ir.tensor(np.asarray(array, order="C"), name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.initializers.append(value)
        return value

    def ints(self, *numbers: int) -> ir.Value:
        """An int64 vector."""
        return self.const(np.array(numbers, np.int64))

    def vector(self, size: Size | int) -> ir.Value:
        """A length as int64 of shape (1,)."""
        return size.vector if isinstance(size, Size) else self.ints(size)

    def size(self, value: ir.Value, axis: int, key: str) -> Size:
        """The length of an axis of a value."""

        def write() -> ir.Value:
            if self.dialect.sizes == "Shape" and self.dialect.opset >= 15:
                return self.op("Shape", value, start=axis, end=axis + 1)
            one = self.op("Gather", self.op("Shape", value), self.const(np.array(axis, np.int64)), axis=0)
            return self.op("Unsqueeze", one, self.ints(0))

        return Size(self, write, key)

    def shape(self, sizes: Sequence[Size | int]) -> ir.Value:
        """Lengths as one int64 vector."""
        if all(isinstance(size, int) for size in sizes):
            return self.ints(*sizes)  # type: ignore[arg-type]
        parts = [self.vector(size) for size in sizes]
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=0)

    def reduce(self, op: str, value: ir.Value, axis: int, *, since: int) -> ir.Value:
        """A reduction that keeps its axis, whose axes became an input with an operator set."""
        if self.dialect.opset >= since:
            return self.op(op, value, self.ints(axis), keepdims=1)
        return self.op(op, value, axes=[axis], keepdims=1)
