"""Shape inference that keeps every dimension already known and follows symbols where onnx loses them."""

from __future__ import annotations

import onnx_ir as ir

from .hush import hushed
from .propagate import Propagation
from .shape_rules import is_unknown

__all__ = ["forget_names", "infer_shapes", "merged", "without_invented"]


def infer_shapes(model: ir.Model) -> int:
    """Fill in unknown types and dimensions, in place.

    First onnx's own inference (without the weights), of which only what was unknown is taken; then a forward
    pass over the operators transformers are made of, com.microsoft ones included, which carries symbols
    through reshapes whose targets are computed from shapes. A dimension without a name gets one.

    Returns:
        How many values are known better than before.
    """
    known = {id(v): (v.dtype, v.shape) for v in _values(model.graph)}
    _onnx_inference(model)
    better = sum(_keep(v, *known[id(v)]) for v in _values(model.graph) if id(v) in known)
    return better + Propagation(model.graph).run()


def _onnx_inference(model: ir.Model) -> None:
    import onnx_ir.passes.common as common

    with hushed("onnx_ir.passes.common.shape_inference"):
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.initializers.values(), *(o for n in graph.all_nodes() for o in n.outputs)]


def _keep(value: ir.Value, dtype: ir.DataType | None, shape: ir.Shape | None) -> bool:
    """Put back what was known before onnx's inference. Returns whether something new remains."""
    inferred, found = without_invented(value.shape), value.dtype
    value.shape = inferred
    if dtype is not None and found != dtype:
        value.dtype = dtype
    if shape is not None:
        value.shape = merged(shape, inferred)
    before = None if shape is None else list(shape)
    after = None if value.shape is None else list(value.shape)
    return before != after or (dtype is None and found is not None)


def without_invented(shape: ir.Shape | None) -> ir.Shape | None:
    """Drop the symbols onnx makes up: another run may use the same ones for something else."""
    if shape is None:
        return None
    invented = [not isinstance(d, int) and str(d.value).startswith("unk__") for d in shape]
    return ir.Shape([None if drop else d for d, drop in zip(shape, invented, strict=True)]) if any(invented) else shape


def forget_names(graph: ir.Graph | ir.Function) -> None:
    """Drop the names of dimensions inside a function: they are its own, whatever a graph it goes into calls so."""
    for value in [*graph.inputs, *(v for node in graph.all_nodes() for v in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])


def merged(first: ir.Shape, second: ir.Shape | None) -> ir.Shape:
    """The first shape, its unknown dimensions taken from the second where the ranks agree."""
    if second is None or len(first) != len(second):
        return first
    return ir.Shape([b if is_unknown(a) else a for a, b in zip(first, second, strict=True)])
