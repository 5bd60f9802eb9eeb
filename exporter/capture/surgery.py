"""Edits on a traced program before anything decomposes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch.export import ExportedProgram

from ...runtime.errors import UnsupportedError
from ..source_map import frames
from .attention_op import ATTENTION, stride_order

__all__ = ["drop_empty_concatenations", "graphs", "keep_attention_whole", "source_line"]

_aten: Final = torch.ops.aten

#: Attention calls whose first result is the attention; the kernels appear in programs saved after decomposition.
_KERNELS: Final = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
    "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps",
)


def keep_attention_whole(program: ExportedProgram) -> int:
    """Turn every scaled-dot-product attention of a program into ``deployml::attention``, in place.

    Returns:
        How many attention calls the program holds.

    Raises:
        UnsupportedError: a call drops attention weights at random, also in inference; all such lines are listed.
    """
    count = 0
    _refuse_dropout(program)
    for graph in graphs(program):
        for node in list(graph.nodes):
            if node.target is _aten.scaled_dot_product_attention.default:
                _replace_call(node)
                count += 1
            elif _kernel_name(node) and _only_first_result(node):
                _replace_kernel(graph, node)
                count += 1
            elif node.target is ATTENTION:
                count += 1
    return count


def _refuse_dropout(program: ExportedProgram) -> None:
    lines: dict[str, None] = {}
    for graph in graphs(program):
        for node in graph.nodes:
            is_call = node.target is _aten.scaled_dot_product_attention.default
            if is_call and _arguments(node).get("dropout_p"):
                lines[source_line(node)] = None
    if lines:
        raise UnsupportedError(
            "scaled_dot_product_attention is called with dropout_p > 0 in eval mode, so its result is random.",
            hint="Pass dropout_p=self.dropout if self.training else 0.0.",
            where=", ".join(lines),
        )


def source_line(node: torch.fx.Node) -> str:
    """ "file.py:line" of the model's own code that a traced node comes from; "" when torch kept no line."""
    found = frames(node.meta.get("stack_trace") or "")
    own = [frame for frame in found if not frame.is_library]
    chosen = (own or found)[-1:]
    return chosen[0].where if chosen else ""


def graphs(program: ExportedProgram) -> Iterator[torch.fx.Graph]:
    """The graph of a program and those of its branches and loops."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            yield module.graph


def _arguments(node: torch.fx.Node) -> dict[str, Any]:
    """Every argument of a call by name, defaults filled in."""
    arguments: dict[str, Any] = {}
    for index, parameter in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if index < len(node.args):
            arguments[parameter.name] = node.args[index]
        else:
            default = parameter.default_value if parameter.has_default_value() else None
            arguments[parameter.name] = node.kwargs.get(parameter.name, default)
    return arguments


def _operands(node: torch.fx.Node, result: torch.Tensor) -> tuple[Any, ...]:
    given = _arguments(node)
    mask = given.get("attn_mask", given.get("attn_bias"))
    return (
        given["query"],
        given["key"],
        given["value"],
        mask,
        float(given.get("dropout_p") or 0.0),
        bool(given.get("is_causal")),
        given.get("scale"),
        bool(given.get("enable_gqa")),
        stride_order(result),
    )


def _replace_call(node: torch.fx.Node) -> None:
    operands = _operands(node, node.meta["val"])
    node.target, node.args, node.kwargs = ATTENTION, operands, {}


def _kernel_name(node: torch.fx.Node) -> str | None:
    name = str(getattr(node.target, "_schema", "")).removeprefix("aten::").split("(")[0].split(".")[0]
    return name if name in _KERNELS else None


def _only_first_result(node: torch.fx.Node) -> bool:
    return all(user.args[1:] == (0,) for user in node.users if user.op == "call_function")


def _replace_kernel(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    result = node.meta["val"][0]
    with graph.inserting_before(node):
        whole = graph.call_function(ATTENTION, _operands(node, result))
    whole.meta = {**node.meta, "val": result}
    for item in list(node.users):
        item.replace_all_uses_with(whole)
        graph.erase_node(item)
    graph.erase_node(node)


def drop_empty_concatenations(program: ExportedProgram) -> None:
    """Take empty one-axis tensors out of ``cat`` calls, in place: a fresh cache starts with one."""
    for graph in graphs(program):
        for node in list(graph.nodes):
            if node.target is _aten.cat.default:
                _drop_empty(node)
        _list_readers(graph)
        graph.eliminate_dead_code(is_impure_node=_acts)


def _acts(node: torch.fx.Node) -> bool:
    """Whether a node does something besides what it returns: ``torch.vmap`` leaves its beginning and its end."""
    return node.is_impure() or getattr(node.target, "__module__", "") == "torch._functorch.predispatch"


def _list_readers(graph: torch.fx.Graph) -> None:
    """Enter every node among the readers of what it reads: torch leaves some out, and cannot erase these then."""
    for node in graph.nodes:
        for operand in node.all_input_nodes:
            operand.users.setdefault(node)


def _drop_empty(node: torch.fx.Node) -> None:
    tensors = list(node.args[0])  # type: ignore[arg-type]
    kept = [tensor for tensor in tensors if not _is_empty_vector(tensor)]
    if not kept or len(kept) == len(tensors):
        return
    if len(kept) == 1 and kept[0].meta["val"].dtype == node.meta["val"].dtype:
        node.replace_all_uses_with(kept[0])
        return
    node.args = (kept, *node.args[1:])


def _is_empty_vector(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dim() == 1 and _is_zero(value.shape[0])


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0
