"""A graph as the reference of a comparison: half precision is computed in float32, as the eager model's is."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import onnx_ir as ir

from ..passes.evaluate import fed_halves, has_halves, in_single
from ..runtime.tensors import session_runner
from .measuring import Graph, Reference
from .writing import weight_bytes

__all__ = ["reference_graph"]

#: Graphs with more bytes of weights are compared as they are: a copy in float32 would take twice as many.
_LARGEST: Final = 1 << 29


def reference_graph(graph: Graph, name: str) -> Reference:
    """A graph to compare with, without onnxruntime's fusions.

    A quantized graph (QuantizeLinear, DequantizeLinear) keeps onnxruntime's own: its integer kernels compute other
    numbers than the float operators that the pairs stand around. Two graphs in half precision differ by the rounding
    of both; only against float32 does the one before fusion say how much rounding is due to the format.

    Args:
        graph: The file.
        name: What the report calls it; " in float32" is added where it is computed so.

    Raises:
        DeploymlError: if onnxruntime does not open it.
    """
    model = ir.load(graph.path)
    if has_halves(model) and weight_bytes(model) <= _LARGEST:
        with suppress(Exception), tempfile.TemporaryDirectory() as folder:  # an operator without a float32 kernel, say
            path = Path(folder) / "single.onnx"
            path.write_bytes(ir.to_proto(in_single(model)).SerializeToString())
            session = replace(graph, path=path).open(optimize="none")
            return Reference(run=fed_halves(session_runner(session)), name=f"{name} in float32", same_dtype=False)
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.all_nodes())
    session = graph.open(optimize="all" if quantized else "none")
    return Reference(run=session_runner(session), name=name)
