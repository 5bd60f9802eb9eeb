"""Running small models: onnxruntime first, onnx's reference evaluator where it has no kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from .graph import attribute, constant

__all__ = ["Configure", "Evaluator", "Run", "fed_halves", "has_halves", "in_double", "in_single"]

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class Configure(Protocol):
    """Registers the libraries that hold operators with a session's options."""

    def __call__(self, options: Any, *, only: Collection[str]) -> object:
        """Register with ``options``, an ``onnxruntime.SessionOptions``, the operators of these names."""


#: Domains whose operators onnxruntime has without a library.
_BUILT_IN = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_NARROW = (ir.DataType.FLOAT, *_HALF)
#: Operators with an element type among their attributes.
_TYPED = frozenset(("Cast", "RandomNormalLike", "EyeLike"))


class Evaluator:
    """Makes callables of small models.

    Args:
        configure: Called as ``configure(options, only=names)`` with the ``onnxruntime.SessionOptions`` of models that
            hold operators of other domains than onnxruntime's own, and their names; registers op libraries. To
            register a library whole would take many times as long as the rest.
    """

    def __init__(self, configure: Configure | None = None) -> None:
        self._configure = configure

    def prepare(self, model: ir.Model, *, threads: int = 1) -> Run:
        """A callable from inputs by name to the list of outputs, on the CPU provider, nothing optimised.

        Args:
            model: The model.
            threads: How many one operator may use.

        Raises:
            Exception: whatever onnxruntime says when it cannot load the model.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # they pay from the third run on
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        names = _foreign(model)
        if self._configure is not None and names:
            self._configure(options, only=names)
        session = onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

        def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})

        return run

    def prepare_exact(self, model: ir.Model) -> Run | None:
        """The same for a float64 model, by whichever engine can; None when none can."""
        inner: Run | None
        try:
            inner = self.prepare(model)
        except Exception:  # no float64 kernel for some operator
            inner = None
        reference = functools.cache(lambda: _reference(model))
        if inner is None and reference() is None:
            return None

        def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
            wide = {
                k: v.astype(np.float64) if v.dtype.kind == "f" or v.dtype.name == "bfloat16" else v
                for k, v in feeds.items()
            }
            with np.errstate(all="ignore"):
                if inner is not None:
                    try:
                        return inner(wide)
                    except Exception:  # legal ONNX that onnxruntime refuses at run time; the reference takes it
                        if reference() is None:
                            raise
                other = reference()
                assert other is not None
                return other(wide)

        return run


def _foreign(model: ir.Model) -> frozenset[str]:
    """Names of the operators that onnxruntime has in no domain of its own."""
    graphs = (model.graph, *(f.graph for f in model.functions.values()))
    nodes = (node for graph in graphs for node in graph.all_nodes())
    return frozenset(node.op_type for node in nodes if node.domain not in _BUILT_IN)


def _reference(model: ir.Model) -> Run | None:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(ir.to_proto(model))
    except Exception:  # an operator outside the standard
        return None
    names = [i.name for i in model.graph.inputs]
    return lambda feeds: [np.asarray(o) for o in evaluator.run(None, {n: feeds[str(n)] for n in names})]


def in_double(model: ir.Model) -> ir.Model:
    """A copy of a model in which every floating-point tensor, attribute and cast is float64."""
    return _widened(model, dict.fromkeys(_NARROW, ir.DataType.DOUBLE))


def in_single(model: ir.Model) -> ir.Model:
    """A copy of a model in which float16 and bfloat16 tensors, attributes and casts are float32.

    A constant that is cast to a half is rounded as the cast would: folding it is no difference.
    """
    copy = model.clone()
    for node in [n for n in copy.graph.all_nodes() if n.op_type == "Cast" and not n.domain]:
        half, array = ir.DataType(attribute(node, "to")), constant(node.inputs[0])
        if array is None or half not in _HALF or array.dtype not in (np.float32, np.float64):
            continue
        rounded = ir.tensor(array.astype(half.numpy()), dtype=half, name=f"{node.outputs[0].name}.rounded")
        value = ir.Value(name=rounded.name, type=ir.TensorType(half), shape=ir.Shape(array.shape), const_value=rounded)
        copy.graph.register_initializer(value)
        node.replace_input_with(0, value)
    return _widened(copy, dict.fromkeys(_HALF, ir.DataType.FLOAT))


def has_halves(model: ir.Model) -> bool:
    """Whether float16 or bfloat16 occurs in a model: as a value, or as what a cast makes."""
    graph = model.graph
    values = (*graph.inputs, *graph.initializers.values(), *(o for n in graph.all_nodes() for o in n.outputs))
    casts = (ir.DataType(attribute(n, "to")) for n in graph.all_nodes() if n.op_type == "Cast" and attribute(n, "to"))
    return any(v.dtype in _HALF for v in values) or any(dtype in _HALF for dtype in casts)


def fed_halves(run: Run) -> Run:
    """A run of a model from :func:`in_single` that takes what the model with halves took."""
    kinds = {half.numpy() for half in _HALF}
    return lambda feeds: run({k: v.astype(np.float32) if v.dtype in kinds else v for k, v in feeds.items()})


Wider = Mapping[ir.DataType, ir.DataType]


def _widened(model: ir.Model, wider: Wider) -> ir.Model:
    copy = model.clone()
    graph = copy.graph
    for value in (*graph.inputs, *graph.outputs):
        _widen(value, wider)
    for value in list(graph.initializers.values()):
        if value.const_value is not None and value.const_value.dtype in wider:
            dtype = wider[value.const_value.dtype].numpy()
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype), name=value.name)
            _widen(value, wider)
    for node in graph.all_nodes():
        _widen_node(node, wider)
        for output in node.outputs:
            _widen(output, wider)
    return copy


def _widen(value: ir.Value, wider: Wider) -> None:
    if value.dtype in wider:
        value.type = ir.TensorType(wider[value.dtype])


def _widen_node(node: ir.Node, wider: Wider) -> None:
    for name in ("to", "dtype"):
        if name in node.attributes and node.op_type in _TYPED:
            dtype = ir.DataType(attribute(node, name))
            node.attributes[name] = ir.AttrInt64(name, int(wider.get(dtype, dtype)))
    for attr in list(node.attributes.values()):
        if attr.type == ir.AttributeType.TENSOR and attr.value.dtype in wider:
            wide = ir.tensor(attr.value.numpy().astype(wider[attr.value.dtype].numpy()))
            node.attributes[attr.name] = ir.AttrTensor(attr.name, wide)
