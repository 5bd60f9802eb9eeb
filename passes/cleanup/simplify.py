"""onnxsim as a library, in a process of its own that cannot see torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import onnx_ir as ir

from ..graph import census

__all__ = ["simplify"]

#: Initializers above this many elements stay here; onnxsim sees them as inputs.
LIMIT: Final = 1024

_PROGRAM: Final = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith("torch."):
            raise ImportError("hidden")
sys.meta_path.insert(0, Hidden())
import onnx, onnxsim
model, ok = onnxsim.simplify(onnx.load(sys.argv[1]))
if not ok:
    sys.exit("onnxsim's own check failed")
onnx.save(model, sys.argv[2])
"""


def simplify(model: ir.Model, *, timeout: float = 120.0) -> tuple[ir.Model, str | None]:
    """Run onnxsim over a model without its weights.

    The result is taken only when inputs, outputs and every operator outside ai.onnx are as before and there
    are no more nodes than before.

    Args:
        model: Left as it is.
        timeout: Seconds granted to onnxsim.

    Returns:
        The simplified model and None, or the model given and a sentence that says why it was kept.
    """
    light, weights = _without_weights(model)
    with tempfile.TemporaryDirectory(prefix="deployml-") as folder:
        source, result = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        ir.save(light, source)
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", _PROGRAM, str(source), str(result)],
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return model, f"onnxsim was stopped after {timeout:.0f} s; the graph was kept as it was"
        if done.returncode or not result.exists():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            return model, f"onnxsim failed ({last[:200]}); the graph was kept as it was"
        simplified = ir.load(result)
        ir.external_data.load_to_model(simplified)
    problem = _restore(simplified, weights, model)
    return (simplified, None) if problem is None else (model, problem)


def _without_weights(model: ir.Model) -> tuple[ir.Model, dict[str, ir.TensorProtocol]]:
    light = model.clone()
    light.functions.clear()  # onnxsim damages bodies it does not understand; an unknown operator it leaves alone
    graph, weights = light.graph, {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= LIMIT or value.is_graph_input():
            continue
        weights[name] = tensor
        graph.initializers.pop(name)
        value.const_value = None
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape)
        graph.inputs.append(value)
    return ir.external_data.load_to_model(light), weights


def _restore(simplified: ir.Model, weights: dict[str, ir.TensorProtocol], model: ir.Model) -> str | None:
    """Put the weights and the functions back. Returns what is wrong with the result, or None."""
    graph = simplified.graph
    simplified.functions.update(model.functions)
    for value in [v for v in graph.inputs if v.name in weights]:
        graph.inputs.remove(value)
        if value.uses():
            value.const_value = weights[str(value.name)]
            graph.register_initializer(value)
    if _signature(simplified) != _signature(model):
        return "onnxsim changed the inputs or outputs; the graph was kept as it was"
    if _special(simplified) != _special(model):
        return "onnxsim changed operators outside ai.onnx; the graph was kept as it was"
    if graph.num_nodes() > model.graph.num_nodes():
        return "onnxsim made the graph larger; it was kept as it was"
    _remember(simplified, model)
    return None


def _remember(simplified: ir.Model, model: ir.Model) -> None:
    """Give values their known shapes back, and nodes what is known of their origin; onnxsim drops both."""
    origin = {o.name: n for n in model.graph for o in n.outputs if o.name}
    for node in simplified.graph:
        for output in node.outputs:
            known = origin.get(output.name)
            if known is None:
                continue
            node.metadata_props.update(known.metadata_props)
            old = next(o for o in known.outputs if o.name == output.name)
            output.type = old.type or output.type
            output.shape = old.shape or output.shape
    for mine, theirs in zip(simplified.graph.inputs, model.graph.inputs, strict=True):
        mine.shape, mine.type = theirs.shape, theirs.type


def _signature(model: ir.Model) -> list[tuple[str | None, ir.DataType | None]]:
    return [(v.name, v.dtype) for v in (*model.graph.inputs, *model.graph.outputs)]


def _special(model: ir.Model) -> dict[str, int]:
    known = ("SimplifiedLayerNormalization",)
    return {op: n for op, n in census(model).items() if "::" in op or op in known}
