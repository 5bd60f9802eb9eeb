"""Ways to make a graph hostile: each takes a fresh model, changes it in place and may refuse by raising Unfit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from deployml.passes.rule import Rule

__all__ = ["HOSTILE", "Unfit"]


class Unfit(Exception):
    """The change cannot be made to this graph."""


def _floats(model: ir.Model) -> list[ir.Value]:
    return [v for v in model.graph.inputs if v.dtype is not None and v.dtype.is_floating_point()]


def duplicated_inputs(model: ir.Model, rule: Rule) -> None:
    """Every float input of one shape is read from the first such input: q is k is v."""
    done = False
    for one, other in itertools.combinations(_floats(model), 2):
        if str(one.shape) == str(other.shape) and one.dtype == other.dtype and other.uses():
            ir.convenience.replace_all_uses_with(other, one)
            done = True
    if not done:
        raise Unfit("no two inputs are alike")


def constants_given(model: ir.Model, rule: Rule) -> None:
    """Float initializers become inputs of the graph."""
    held = [v for v in model.graph.initializers.values() if v.dtype is not None and v.dtype.is_floating_point()]
    if not held:
        raise Unfit("no float constants")
    for value in held:
        model.graph.initializers.pop(value.name)
        value.const_value = None
        model.graph.inputs.append(value)


def constants_overridable(model: ir.Model, rule: Rule) -> None:
    """Initializers are inputs too, with their values as defaults."""
    if not model.graph.initializers:
        raise Unfit("no constants")
    model.graph.inputs.extend(list(model.graph.initializers.values()))


def everything_is_an_output(model: ir.Model, rule: Rule) -> None:
    """Each intermediate value is an output of the graph."""
    known = {id(v) for v in model.graph.outputs}
    middle = [o for n in model.graph for o in n.outputs if id(o) not in known and o.name and o.shape is not None]
    if not middle:
        raise Unfit("nothing in the middle")
    model.graph.outputs.extend(middle)


def one_in_the_middle_is_an_output(model: ir.Model, rule: Rule) -> None:
    """The value right above the last node is an output of the graph."""
    known = {id(v) for v in model.graph.outputs}
    nodes = list(model.graph)
    feeders = [v for v in nodes[-1].inputs if v is not None and v.producer() is not None and id(v) not in known]
    if not feeders or feeders[0].shape is None:
        raise Unfit("nothing in the middle")
    model.graph.outputs.append(feeders[0])


def names_collide(model: ir.Model, rule: Rule) -> None:
    """Nodes and values have the names the rule would like for its own."""
    for number, node in enumerate(model.graph):
        node.name = f"{rule.name}.{number}"
        for slot, output in enumerate(node.outputs):
            if not output.is_graph_output() and output.name:
                output.name = f"{rule.name}.{number + 1}_out{slot or ''}"


def nameless_nodes(model: ir.Model, rule: Rule) -> None:
    """No node has a name."""
    for node in model.graph:
        node.name = ""


def one_name_for_all(model: ir.Model, rule: Rule) -> None:
    """All nodes have one name."""
    for node in model.graph:
        node.name = "node"


def unknown_shapes(model: ir.Model, rule: Rule) -> None:
    """No value but the inputs has a shape or a type."""
    for node in model.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.shape = output.type = None


def unknown_ranks(model: ir.Model, rule: Rule) -> None:
    """Nothing has a shape, inputs and outputs neither."""
    unknown_shapes(model, rule)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = None


def anonymous_dims(model: ir.Model, rule: Rule) -> None:
    """Symbols are forgotten: every dimension that is no number is just unknown."""
    values = [*model.graph.inputs, *model.graph.outputs, *(o for n in model.graph for o in n.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])


def odd_dim_names(model: ir.Model, rule: Rule) -> None:
    """Dimensions have names that are no expressions."""
    values = [*model.graph.inputs, *model.graph.outputs, *(o for n in model.graph for o in n.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else f"/a b/{d.value}?" for d in value.shape])


def twice(model: ir.Model, rule: Rule) -> None:
    """The whole pattern stands there a second time, on the same inputs."""
    graph, copy = model.graph, model.clone().graph
    for mine, theirs in zip(graph.inputs, copy.inputs, strict=True):
        ir.convenience.replace_all_uses_with(theirs, mine)
    for name, value in list(copy.initializers.items()):
        ir.convenience.replace_all_uses_with(value, graph.initializers[name])
    outputs, nodes = list(copy.outputs), list(copy)
    copy.outputs.clear()
    copy.remove(nodes)
    for node in nodes:
        node.name = f"{node.name}.second"
        for output in node.outputs:
            output.name = f"{output.name}.second" if output.name else ""
    graph.extend(nodes)
    graph.outputs.extend(outputs)


def in_branches(model: ir.Model, rule: Rule) -> None:
    """The pattern stands in both branches of an If and reads the inputs from around it."""
    graph = model.graph
    branches = []
    for side in ("then", "else"):
        copy = model.clone().graph
        for mine, theirs in zip(graph.inputs, copy.inputs, strict=True):
            ir.convenience.replace_all_uses_with(theirs, mine)
        for name, value in list(copy.initializers.items()):
            ir.convenience.replace_all_uses_with(value, graph.initializers[name])
        outputs, nodes = list(copy.outputs), list(copy)
        copy.outputs.clear()
        copy.remove(nodes)
        for node in nodes:
            node.name = f"{node.name}.{side}"
            for output in node.outputs:
                output.name = f"{output.name}.{side}" if output.name else ""
        branches.append(ir.Graph([], outputs, nodes=nodes, name=side))
    given = ir.Value(name="which", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
    old = list(graph.outputs)
    choice = ir.node(
        "If",
        [given],
        attributes={"then_branch": branches[0], "else_branch": branches[1]},
        num_outputs=len(old),
        name="choice",
    )
    for mine, theirs in zip(choice.outputs, old, strict=True):
        mine.name, mine.type, mine.shape = theirs.name, theirs.type, theirs.shape
    graph.outputs.clear()
    graph.remove(list(graph))
    graph.append(choice)
    graph.inputs.append(given)
    graph.outputs.extend(choice.outputs)


def in_double_precision(model: ir.Model, rule: Rule) -> None:
    """Every float is float64."""
    _retype(model, ir.DataType.FLOAT, ir.DataType.DOUBLE)


def in_half_precision(model: ir.Model, rule: Rule) -> None:
    """Every float is float16."""
    _retype(model, ir.DataType.FLOAT, ir.DataType.FLOAT16)


def _retype(model: ir.Model, old: ir.DataType, new: ir.DataType) -> None:
    graph = model.graph
    with np.errstate(all="ignore"):
        for value in graph.initializers.values():
            if value.dtype == old and value.const_value is not None:
                value.const_value = ir.tensor(value.const_value.numpy().astype(new.numpy()), name=value.name)
        for node in graph.all_nodes():
            for attr in list(node.attributes.values()):
                if attr.name in ("to", "dtype", "stash_type") and attr.value == int(old):
                    node.attributes[attr.name] = ir.AttrInt64(attr.name, int(new))
                elif attr.type == ir.AttributeType.TENSOR and attr.value.dtype == old:
                    node.attributes[attr.name] = ir.AttrTensor(
                        attr.name, ir.tensor(attr.value.numpy().astype(new.numpy()))
                    )
                elif attr.name == "value_float":
                    node.attributes.pop("value_float")
                    node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(attr.value, new.numpy())))
    values = [
        *graph.inputs,
        *graph.outputs,
        *graph.initializers.values(),
        *(o for n in graph for o in n.outputs),
    ]
    for value in values:
        if value.dtype == old:
            value.type = ir.TensorType(new)


def newest_opset(model: ir.Model, rule: Rule) -> None:
    """The graph says opset 23."""
    model.graph.opset_imports[""] = 23


def older_opset(model: ir.Model, rule: Rule) -> None:
    """The graph says opset 17."""
    model.graph.opset_imports[""] = 17


HOSTILE: tuple[Callable[[ir.Model, Rule], None], ...] = (
    duplicated_inputs,
    constants_given,
    constants_overridable,
    everything_is_an_output,
    one_in_the_middle_is_an_output,
    names_collide,
    nameless_nodes,
    one_name_for_all,
    unknown_shapes,
    unknown_ranks,
    anonymous_dims,
    odd_dim_names,
    twice,
    in_branches,
    in_double_precision,
    in_half_precision,
    newest_opset,
    older_opset,
)
