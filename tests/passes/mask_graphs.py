"""Random mask graphs and the comparison of what a mask does with what the facts say of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from deployml.passes.masks import (
    Always,
    Causal,
    KeyLengths,
    KeyPadding,
    MaskFacts,
    Window,
)

D = ir.DataType
#: Side of the constant buffers: larger than any size drawn.
BUFFER = 12
OPSET = 18
FORBIDDEN = -9e3


@dataclass(frozen=True)
class Mode:
    """How S and T relate: names of the sizes, and the concrete sizes to run at."""

    query: str
    key: str
    sizes: tuple[dict[str, int], ...]


def _sizes(pairs: Sequence[tuple[int, int]], second: str) -> tuple[dict[str, int], ...]:
    return tuple({"B": 2, "S": s, second: t} for s, t in pairs)


MODES = {
    "same": Mode("S", "S", tuple({"B": 2, "S": s} for s in (1, 2, 5, 7))),
    "free": Mode("S", "T", _sizes([(1, 1), (2, 2), (7, 7), (2, 5), (3, 7), (1, 4), (5, 3)], "T")),
    "past": Mode("S", "P + S", _sizes([(1, 0), (1, 3), (2, 1), (5, 0), (4, 3)], "P")),
}


class Graph:
    """A graph under construction, with the inputs masks are made of."""

    def __init__(self, mode: Mode, opset: int = OPSET) -> None:
        self.mode = mode
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        s, t = mode.query, mode.key
        self.inputs = {
            "query": self._input("query", D.FLOAT, ["B", 4, s, 8]),
            "key": self._input("key", D.FLOAT, ["B", 4, t, 8]),
            "mask": self._input("mask", D.INT64, ["B", t]),
            "flags": self._input("flags", D.BOOL, ["B", t]),
            "weights": self._input("weights", D.FLOAT, ["B", t]),
            "binary": self._input("binary", D.FLOAT, ["B", t]),
            "segments": self._input("segments", D.INT64, ["B", t]),
            "rows": self._input("rows", D.INT64, ["B", s]),
            "lengths": self._input("lengths", D.INT64, ["B"]),
            "table": self._input("table", D.FLOAT, [1, 4, s, t]),
            "full": self._input("full", D.BOOL, ["B", 1, s, t]),
        }
        self.opset = opset

    @staticmethod
    def _input(name: str, dtype: ir.DataType, shape: list[int | str]) -> ir.Value:
        return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: object) -> ir.Value:
        """Append a node; its output has a dtype and no shape, as in a decomposed export."""
        node = ir.node(op_type, list(inputs), attributes=attributes, name=f"n{len(self.nodes)}")  # type: ignore[arg-type]
        node.outputs[0].name = f"v{len(self.nodes)}"
        node.outputs[0].dtype = _dtype(op_type, inputs, attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def const(self, array: object, dtype: type = np.int64) -> ir.Value:
        """Append an initializer."""
        tensor = ir.tensor(np.asarray(array, dtype))
        name = f"c{len(self.constants)}"
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
        self.constants.append(value)
        return value

    def unsqueeze(self, value: ir.Value, *axes: int) -> ir.Value:
        """Insert axes of size 1."""
        return self.op("Unsqueeze", value, self.const(axes))

    def size(self, name: str) -> ir.Value:
        """S ("query") or T ("key"), rank 0, read from a shape."""
        shape = self.op("Shape", self.inputs[name])
        return self.op("Gather", shape, self.const(2), axis=0)

    def vector(self, name: str) -> ir.Value:
        """S or T, rank 1."""
        return self.op("Shape", self.inputs[name], start=2, end=3)

    def arange(self, name: str) -> ir.Value:
        """0, 1, ... up to S or T."""
        return self.op("Range", self.const(0), self.size(name), self.const(1))

    def i(self) -> ir.Value:
        """The query index, (S, 1)."""
        return self.unsqueeze(self.arange("query"), 1)

    def j(self) -> ir.Value:
        """The key index, (1, T)."""
        return self.unsqueeze(self.arange("key"), 0)

    def model(self, outputs: Sequence[ir.Value]) -> ir.Model:
        """The model with the given outputs."""
        graph = ir.Graph(
            list(self.inputs.values()),
            list(outputs),
            nodes=self.nodes,
            initializers=self.constants,
            opset_imports={"": self.opset},
            name="mask",
        )
        return ir.Model(graph, ir_version=9)


def _dtype(op_type: str, inputs: Sequence[ir.Value | None], attributes: dict[str, object]) -> ir.DataType | None:
    if op_type in ("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal", "Not", "And", "Or", "Xor"):
        return D.BOOL
    if op_type == "Cast":
        return attributes["to"]  # type: ignore[return-value]
    if op_type == "Shape":
        return D.INT64
    if op_type == "ConstantOfShape":
        return attributes["value"].dtype  # type: ignore[attr-defined]
    like = inputs[1] if op_type in ("Where", "CastLike") else inputs[0]
    return None if like is None else like.dtype


def feeds(mode: Mode, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Inputs of one size: holes, odd integers and odd floats among the flags."""
    rng = np.random.default_rng(seed)
    b, s = sizes["B"], sizes["S"]
    t = key_size(mode, sizes)
    return {
        "query": np.zeros((b, 4, s, 8), np.float32),
        "key": np.zeros((b, 4, t, 8), np.float32),
        "mask": rng.choice([0, 1, 1, 2, -3], (b, t)).astype(np.int64),
        "flags": rng.random((b, t)) < 0.6,
        "weights": rng.choice([0.0, 1.0, 0.25, -2.0, 1e-9], (b, t)).astype(np.float32),
        "binary": rng.choice([0.0, 1.0], (b, t)).astype(np.float32),
        "segments": rng.integers(0, 3, (b, t)),
        "rows": rng.integers(0, 3, (b, s)),
        "lengths": rng.integers(0, t + 2, (b,)),
        "table": rng.normal(size=(1, 4, s, t)).astype(np.float32),
        "full": rng.random((b, 1, s, t)) < 0.5,
    }


def key_size(mode: Mode, sizes: dict[str, int]) -> int:
    """T at concrete sizes."""
    return int(eval(mode.key, {}, dict(sizes)))


def keeps(facts: MaskFacts, values: dict[str, np.ndarray], mode: Mode, sizes: dict[str, int]) -> np.ndarray:
    """AND of the conjuncts as a (B, 1, S, T) array, from the definitions in their docstrings."""
    b, s, t = sizes["B"], sizes["S"], key_size(mode, sizes)
    i, j = np.arange(s)[None, None, :, None], np.arange(t)[None, None, None, :]
    keep = np.ones((b, 1, s, t), bool)

    def number(offset: int | str) -> int:
        return offset if isinstance(offset, int) else int(eval(offset, {}, dict(sizes)))

    for item in facts.conjuncts:
        if isinstance(item, Causal):
            if item.lower_right:
                assert number(item.offset) == t - s
            keep &= j <= i + number(item.offset)
        elif isinstance(item, Window):
            if item.left is not None:
                keep &= j > i + number(item.offset) - item.left
            if item.right is not None:
                keep &= j < i + number(item.offset) + item.right
        elif isinstance(item, KeyPadding):
            flags = values[item.value.name] != 0
            flags = _seat(flags if item.how == "nonzero" else ~flags, item.batch_axis, item.key_axis, t)
            keep &= flags
        elif isinstance(item, KeyLengths):
            keep &= j < _seat(values[item.value.name], item.batch_axis, None, 1) + item.offset
        else:
            assert isinstance(item, Always)
    return keep


def _seat(array: np.ndarray, batch_axis: int | None, key_axis: int | None, key: int) -> np.ndarray:
    """Bring flags to (B or 1, 1, 1, T) by the axes a fact names."""
    if batch_axis is not None and key_axis is not None and key_axis < batch_axis:
        array = np.swapaxes(array, batch_axis, key_axis)
    batch = 1 if batch_axis is None else array.size // key
    return array.reshape(batch, 1, 1, key)


def read_values(facts: MaskFacts) -> list[ir.Value]:
    """The graph values that facts refer to."""
    named = [c.value for c in facts.conjuncts if isinstance(c, KeyPadding | KeyLengths)]
    return list(dict.fromkeys((*named, *facts.additive)))


def run(
    graph: Graph, mask: ir.Value, facts: MaskFacts, seed: int
) -> list[tuple[dict[str, int], dict[str, np.ndarray]]]:
    """Values of the mask and of all that the facts name, at every size of the mode."""
    wanted = [mask, *read_values(facts)]
    made = [v for v in dict.fromkeys(wanted) if v.producer() is not None]
    initial = {c.name: c.const_value.numpy() for c in graph.constants}
    if mask not in made:
        made.append(graph.op("Identity", mask))
    model = graph.model(made)
    data = ir.to_proto(model).SerializeToString()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    names = [v.name for v in made]
    results = []
    for k, sizes in enumerate(graph.mode.sizes):
        given = feeds(graph.mode, sizes, seed * 31 + k)
        if facts.assumes_binary:
            given["mask"] = (given["mask"] != 0).astype(np.int64)
            given["weights"] = (given["weights"] != 0).astype(np.float32)
        results.append((sizes, {**initial, **given, **dict(zip(names, session.run(names, given), strict=True))}))
    return results


def check(graph: Graph, mask: ir.Value, facts: MaskFacts, seed: int, *, forbids: bool = False) -> int:
    """Assert that the facts are true of the mask at every size. Returns how many places were compared."""
    places = 0
    for sizes, values in run(graph, mask, facts, seed):
        said = keeps(facts, values, graph.mode, sizes)
        shape = (sizes["B"], 4, sizes["S"], key_size(graph.mode, sizes))
        actual, said = np.broadcast_to(values[mask.name], shape), np.broadcast_to(said, shape)
        bias = np.zeros(shape, np.float64)
        for value in facts.additive:
            bias = bias + values[value.name]
        if facts.kind == "boolean":
            kept = ~actual if forbids else actual
        else:
            kept = actual > FORBIDDEN
            np.testing.assert_allclose(actual[kept], bias[kept], rtol=1e-5, atol=1e-5)
            if facts.fill is not None:
                assert (actual[~kept] == np.float32(facts.fill)).all()
            # Where a bias itself forbids, the mask may say either.
            said = np.where(bias > FORBIDDEN, said, kept)
        if facts.residual:
            assert not (kept & ~said).any(), (sizes, facts)
        else:
            np.testing.assert_array_equal(kept, said, err_msg=f"{sizes} {facts}")
        _check_axes(facts, actual)
        places += actual.size
    return places


def _check_axes(facts: MaskFacts, actual: np.ndarray) -> None:
    for axis, name in enumerate(("batch", "head", "query", "key")):
        if name not in facts.axes:
            np.testing.assert_array_equal(actual, np.broadcast_to(actual.take([0], axis=axis), actual.shape))


class Draw:
    """Draws a random mask over one graph."""

    def __init__(self, graph: Graph, rng: random.Random) -> None:
        self.g = graph
        self.rng = rng

    def mask(self) -> tuple[ir.Value, bool]:
        """A mask, and whether it is boolean."""
        if self.rng.random() < 0.45:
            return self.layout(self.keep(self.rng.randint(0, 3))), True
        return self.additive(), False

    def additive(self) -> ir.Value:
        """A float mask, as models write it."""
        g, rng = self.g, self.rng
        fill = rng.choice([-np.inf, float(np.finfo(np.float32).min), -1e4, -1e9])
        keep = self.keep(rng.randint(0, 2))
        zero, low = g.const(0.0, np.float32), g.const(fill, np.float32)
        kind = rng.randrange(7)
        if kind == 0:
            return self.layout(g.op("Where", keep, zero, low))
        if kind == 1:
            return g.op("Where", g.op("Not", keep), low, zero)
        if kind == 2:
            low = g.const(max(fill, float(np.finfo(np.float32).min)), np.float32)
            return g.op("Mul", g.op("Sub", g.const(1.0, np.float32), self.as_float(keep)), low)
        if kind == 3:
            return g.op("Add", g.inputs["table"], g.op("Where", keep, zero, low))
        if kind == 4:
            return g.op("Where", keep, g.inputs["table"], low)
        if kind == 5:
            other = g.op("Where", self.keep(1), zero, low)
            return g.op("Add", other, g.op("Where", keep, zero, low))
        name = rng.choice(["weights", "binary"])
        flags = self.four(g.inputs[name])
        inverted = g.op("Sub", g.const(1.0, np.float32), flags)
        if rng.random() < 0.5:
            return g.op("Where", g.op("Cast", inverted, to=D.BOOL), low, inverted)
        return g.op("Mul", inverted, g.const(-1e4, np.float32))

    def as_float(self, keep: ir.Value) -> ir.Value:
        """A boolean as 0.0 and 1.0."""
        return self.g.op("Cast", keep, to=D.FLOAT)

    def four(self, value: ir.Value) -> ir.Value:
        """(B, T) as (B, 1, 1, T), in one of the ways people write it."""
        g = self.g
        if self.rng.random() < 0.5:
            return g.unsqueeze(value, 1, 2)
        if self.rng.random() < 0.5:
            return g.unsqueeze(g.unsqueeze(value, 1), 1)
        shape = g.op("Shape", value)
        one, start, end = g.const([1]), g.const([0]), g.const([1])
        batch = g.op("Slice", shape, start, end)
        return g.op("Reshape", value, g.op("Concat", batch, one, one, g.const([-1]), axis=0))

    def layout(self, value: ir.Value) -> ir.Value:
        """Perhaps an operator that keeps the meaning."""
        g, kind = self.g, self.rng.randrange(5)
        if kind == 0:
            return g.op("Identity", value)
        if kind == 1:
            ones = g.const([1, 1, 1, 1])
            return g.op("Expand", value, ones)
        if kind == 2:
            shape = g.op("Concat", g.const([1, 1]), g.vector("query"), g.vector("key"), axis=0)
            return g.op("Expand", value, shape)
        return value

    def keep(self, depth: int) -> ir.Value:
        """A boolean, broadcastable to (B, 1, S, T)."""
        g, rng = self.g, self.rng
        if depth == 0:
            return rng.choice(
                [self.compare, self.compare, self.padding, self.padding, self.buffer, self.trilu, self.odd]
            )()
        left, right = self.keep(depth - 1), self.keep(rng.randint(0, depth - 1))
        kind = rng.randrange(9)
        if kind < 3:
            return g.op("And", left, right)
        if kind == 3:
            return g.op("Not", g.op("Or", g.op("Not", left), g.op("Not", right)))
        if kind == 4:
            return g.op(rng.choice(["Or", "Xor"]), left, right)
        if kind == 5:
            return g.op("Not", left)
        if kind == 6:
            product = g.op("Mul", self.as_float(left), self.as_float(right))
            return (
                g.op("Greater", product, g.const(0.5, np.float32))
                if rng.random() < 0.5
                else g.op("Cast", product, to=D.BOOL)
            )
        if kind == 7:
            chosen = g.op("Where", left, g.op("Cast", right, to=D.INT64), g.const(rng.randrange(2)))
            return g.op("Cast", chosen, to=D.BOOL)
        joined = g.op(rng.choice(["Min", "Max"]), self.as_float(left), self.as_float(right))
        return g.op("Equal", joined, g.const(1.0, np.float32))

    def index(self, name: str) -> ir.Value:
        """The query or key index as a column or a row, in one of several spellings."""
        g, rng = self.g, self.rng
        kind = rng.randrange(4)
        if kind == 0:
            start, end = g.const([0]), g.vector(name)
            line = g.op("Slice", g.const(np.arange(BUFFER)), start, end, g.const([0]))
        elif kind == 1:
            ones = g.op("ConstantOfShape", g.vector(name), value=ir.tensor(np.array([1], np.int64)))
            line = g.op("Sub", g.op("CumSum", ones, g.const(0)), g.const(1))
        else:
            line = g.arange(name)
        return g.unsqueeze(line, 1 if name == "query" else 0)

    def compare(self) -> ir.Value:
        """i against j, with an offset or by their distance."""
        g, rng = self.g, self.rng
        i, j = self.index("query"), self.index("key")
        width = g.const(rng.choice([0, 1, 2, 3, 6]))
        if rng.random() < 0.2:
            i, j, width = (g.op("Cast", v, to=D.FLOAT) for v in (i, j, width))
        kind = rng.randrange(6)
        if kind == 0:
            past = g.op("Sub", g.size("key"), g.size("query"))
            i = g.op("Add", i, g.op("CastLike", past, i))
            return g.op("LessOrEqual", j, i)
        if kind == 1:
            return g.op(rng.choice(["Less", "LessOrEqual"]), g.op("Abs", g.op("Sub", i, j)), width)
        if kind == 2:
            return g.op(rng.choice(["Greater", "GreaterOrEqual"]), j, g.op("Sub", i, width))
        if kind == 3:
            return g.op(rng.choice(["Less", "Greater"]), g.op("Neg", i), g.op("Neg", j))
        left, right = rng.choice([(i, j), (j, i)])
        if rng.random() < 0.3:
            left = g.op("Add", left, width)
        return g.op(rng.choice(["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"]), left, right)

    def padding(self) -> ir.Value:
        """Which keys exist."""
        g, rng = self.g, self.rng
        kind = rng.randrange(7)
        if kind == 0:
            return self.four(g.inputs["flags"])
        if kind == 1:
            return g.op("Cast", self.four(g.inputs[rng.choice(["mask", "weights"])]), to=D.BOOL)
        if kind == 2:
            return g.op("Not", self.four(g.op("Equal", g.inputs["segments"], g.const(rng.choice([0, 1])))))
        if kind == 3:
            lengths = g.unsqueeze(g.inputs["lengths"], 1, 2, 3)
            return g.op(rng.choice(["Less", "LessOrEqual"]), g.arange("key"), lengths)
        if kind == 4:
            return g.op(rng.choice(["Greater", "Equal"]), self.four(g.inputs["mask"]), g.const(0))
        if kind == 5:
            return self.gathered()
        return g.op("Or", self.four(g.inputs["flags"]), self.four(g.op("Cast", g.inputs["mask"], to=D.BOOL)))

    def gathered(self) -> ir.Value:
        """mask[batch_index, key_index] through GatherND, as vmapped index functions write it."""
        g = self.g
        batch = g.op("Range", g.const(0), g.op("Gather", g.op("Shape", g.inputs["mask"]), g.const(0)), g.const(1))
        batch, key = g.unsqueeze(batch, 1, 2, 3), g.unsqueeze(g.arange("key"), 0, 1, 2)
        shape = g.op("Shape", g.op("Max", batch, key))
        parts = [g.unsqueeze(g.op("Expand", v, shape), -1) for v in (batch, key)]
        return g.op("GatherND", g.op("Cast", g.inputs["mask"], to=D.BOOL), g.op("Concat", *parts, axis=-1))

    def buffer(self) -> ir.Value:
        """A stored triangle or band, cut to (S, T)."""
        g, rng = self.g, self.rng
        ones = np.ones((BUFFER, BUFFER))
        array = np.tril(ones, rng.choice([0, 0, 1, -1]))
        if rng.random() < 0.4:
            array = np.logical_xor(array, np.tril(array, -rng.choice([1, 2, 3]))).astype(np.float64)
        if rng.random() < 0.2:
            array = np.asarray(np.random.default_rng(rng.randrange(99)).random((BUFFER, BUFFER)) < 0.5, np.float64)
        stored = g.const(array[None, None], rng.choice([np.bool_, np.float32, np.int64]))
        begin = g.const([0]) if rng.random() < 0.6 else g.op("Sub", g.vector("key"), g.vector("query"))
        end = g.vector("query") if begin in g.constants else g.vector("key")
        if self.g.mode.key == "T":
            begin, end = g.const([0]), g.vector("query")
        part = g.op(
            "Slice",
            g.op("Slice", stored, begin, end, g.const([2])),
            g.const([0]),
            g.vector("key"),
            g.const([3]),
        )
        return g.op("Cast", part, to=D.BOOL)

    def trilu(self) -> ir.Value:
        """Ones cut by Trilu."""
        g, rng = self.g, self.rng
        shape = g.op("Concat", g.vector("query"), g.vector("key"), axis=0)
        ones = g.op("ConstantOfShape", shape, value=ir.tensor(np.array([1], np.float32)))
        k = g.const(rng.choice([0, 1, -1, 2])) if rng.random() < 0.7 else g.op("Sub", g.size("key"), g.size("query"))
        cut = g.op("Trilu", ones, k, upper=rng.randrange(2))
        return (
            g.op("Equal", cut, g.const(rng.choice([0.0, 1.0]), np.float32))
            if rng.random() < 0.5
            else g.op("Cast", cut, to=D.BOOL)
        )

    def odd(self) -> ir.Value:
        """Masks that are no typed fact: packed sequences, positions of the user, prefixes, a full mask."""
        g, rng = self.g, self.rng
        kind = rng.randrange(5)
        rows = g.unsqueeze(g.inputs["rows"], 1, 3)
        if kind == 0:
            return g.op("Equal", rows, self.four(g.inputs["segments"]))
        if kind == 1:
            return g.op("LessOrEqual", g.j(), rows)
        if kind == 2:
            return g.op("Or", g.op("LessOrEqual", g.j(), g.i()), g.op("Less", g.j(), g.const(rng.choice([2, 3]))))
        if kind == 3:
            stored = g.const(np.tril(np.ones((BUFFER, BUFFER))), np.bool_)
            picked = g.op("Gather", stored, g.inputs["rows"], axis=0)
            cut = g.op("Slice", picked, g.const([0]), g.vector("key"), g.const([2]))
            return g.unsqueeze(cut, 1)
        return g.inputs["full"]
