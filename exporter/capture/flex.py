"""``flex_attention`` calls: taken apart into products, the caller's functions of scores and positions, and a softmax.

torch.export keeps such a call as one higher-order operator with two graphs of scalars, the score and the mask
modification (PyTorch, "FlexAttention"); ONNX has nothing like it. Written out over whole tensors it is attention like
any other: the passes see a bias, a cap or a mask and find one operator for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import torch
from torch._functorch import predispatch
from torch._higher_order_ops.flex_attention import flex_attention
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

from ...runtime.errors import UnsupportedError
from .surgery import source_line

__all__ = ["open_flex_attention"]

_aten: Final = torch.ops.aten
#: What gives a mask that allows everything: the stand-in for a missing one.
_ONES: Final = (_aten.new_ones.default, _aten.ones.default, _aten.ones_like.default)


def open_flex_attention(program: ExportedProgram) -> None:
    """Write out every ``flex_attention`` of a program, in place.

    The result is that of torch's eager implementation: scores and softmax in float32 (float64 for float64), rows
    whose keys are all masked give 0.

    Raises:
        UnsupportedError: a function of the call makes tensors of its own, which cannot be taken over.
    """
    for owner in program.graph_module.modules():
        if not isinstance(owner, torch.fx.GraphModule):
            continue
        calls = [node for node in owner.graph.nodes if node.target is flex_attention]
        for node in calls:
            _write_out(owner, node)
        if calls:
            _drop_block_lists(owner.graph)
            owner.recompile()


def _write_out(owner: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    query, key, value, score_graph, block_mask, scale, _, score_given, mask_given = _operands(node)
    score = _Modification(owner, score_graph)
    mask = _Modification(owner, block_mask[-1])
    dtype = query.meta["val"].dtype

    def weights(scores: torch.Tensor, *given: Any) -> tuple[torch.Tensor, ...]:
        axes = [torch.arange(size, device=scores.device) for size in scores.shape]
        logits = score.over(axes, given[: len(score_given)], scores)
        if not mask.allows_everything:
            kept = mask.over(axes, given[len(score_given) :])
            logits = torch.where(kept, logits, -math.inf)
        return _aten._safe_softmax.default(logits, -1).to(dtype), *_row_results(logits)

    with owner.graph.inserting_before(node):
        emit = _Emitter(owner.graph, node)
        working = torch.float64 if dtype == torch.float64 else torch.float32
        query, key = (emit.converted(operand, working) for operand in (query, emit.per_query_head(key, query)))
        product = emit(_aten.matmul.default, query, emit(_aten.transpose.int, key, -2, -1))
        scores = emit(_aten.mul.Tensor, product, scale)
        share, sums, highest = emit.spliced(weights, (scores, *score_given, *mask_given))
        attention = emit(_aten.matmul.default, share, emit.per_query_head(value, query))
    for item in list(node.users):
        item.replace_all_uses_with((attention, sums, highest)[item.args[1]])
        owner.graph.erase_node(item)
    owner.graph.erase_node(node)


class _Emitter:
    """Adds nodes to a graph in place of one, with what torch knows of their results."""

    def __init__(self, graph: torch.fx.Graph, node: torch.fx.Node) -> None:
        self.graph = graph
        self.node = node
        self.mode: FakeTensorMode = node.args[0].meta["val"].fake_mode  # type: ignore[union-attr]
        module = node.meta.get("nn_module_stack")
        line = _written_line(node)
        self.origin = ({"nn_module_stack": module} if module else {}) | ({"stack_trace": line} if line else {})

    def __call__(self, target: Any, *operands: Any) -> torch.fx.Node:
        new = self.graph.call_function(target, operands)
        with self.mode, torch.no_grad():
            new.meta = {**self.origin, "val": target(*(_known(operand) for operand in operands))}
        return new

    def converted(self, tensor: torch.fx.Node, dtype: torch.dtype) -> torch.fx.Node:
        return tensor if tensor.meta["val"].dtype == dtype else self(_aten.to.dtype, tensor, dtype)

    def per_query_head(self, shared: torch.fx.Node, query: torch.fx.Node) -> torch.fx.Node:
        """Keys or values with one head for each query head."""
        times = query.meta["val"].shape[1] // shared.meta["val"].shape[1]
        return shared if times == 1 else self(_aten.repeat_interleave.self_int, shared, times, 1)

    def spliced(self, function: Callable[..., Any], operands: tuple[Any, ...]) -> Any:
        """The results of a function of torch operators, its graph put here."""
        with self.mode, torch.no_grad():
            traced = make_fx(function, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*map(_known, operands))
        traced.graph.eliminate_dead_code()
        if any(inner.op == "get_attr" for inner in traced.graph.nodes):
            raise UnsupportedError(
                "flex_attention is given a function that makes tensors of its own.",
                hint="Make them outside the score_mod or mask_mod, as buffers of the module.",
                where=source_line(self.node),
            )
        places = dict(zip(traced.graph.find_nodes(op="placeholder"), operands, strict=True))
        before = set(self.graph.nodes)
        results = self.graph.graph_copy(traced.graph, places)
        for new in self.graph.nodes:
            if new not in before:
                new.meta = {"val": new.meta.get("val"), **self.origin}
        return results


def _known(operand: Any) -> Any:
    return operand.meta["val"] if isinstance(operand, torch.fx.Node) else operand


def _written_line(node: torch.fx.Node, steps: int = 16) -> str:
    """The traceback of the call, or of the nearest node before it where torch kept only generated code."""
    for _ in range(steps):
        found = node.meta.get("stack_trace") or ""
        if found and "<eval_with_key>" not in found:
            return found
        before = node.all_input_nodes
        if not before:
            break
        node = before[0]
    return ""


def _drop_block_lists(graph: torch.fx.Graph) -> None:
    """Take out what listed the blocks of a mask for the kernel: whole ``vmap`` regions whose results nobody reads.

    torch's own removal of dead code takes them apart: they write in place, which it leaves, and loses what is written.
    """
    reached = list(graph.output_node().all_input_nodes)
    live = set(reached)
    while reached:
        new = [node for node in reached.pop().all_input_nodes if node not in live]
        live.update(new)
        reached += new
    region: list[torch.fx.Node] = []
    idle: list[torch.fx.Node] = []
    depth = 0
    for node in graph.nodes:
        entered = node.target is predispatch._vmap_increment_nesting
        depth += entered
        if depth:
            region.append(node)
        depth -= node.target is predispatch._vmap_decrement_nesting
        if region and not depth:
            idle += [] if live.intersection(region) else region
            region = []
    listed = set(idle)
    for node in reversed(graph.nodes):
        unread = node not in live and node.op == "call_function" and not node.users
        idle_check = node.target is _aten._assert_tensor_metadata.default
        if node in listed or (unread and (idle_check or not node.is_impure())):
            graph.erase_node(node)


def _operands(node: torch.fx.Node) -> tuple[Any, ...]:
    names = (
        *("query", "key", "value", "score_mod", "block_mask", "scale", "kernel_options"),
        *("score_mod_other_buffers", "mask_mod_other_buffers"),
    )
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return tuple(given.get(name, ()) for name in names)


class _Modification:
    """A function of one score, or of none, and of its batch, head, query and key index, as a graph of scalars."""

    def __init__(self, owner: torch.fx.GraphModule, reference: torch.fx.Node) -> None:
        self.function = owner.get_submodule(str(reference.target))
        graph = self.function.graph  # type: ignore[union-attr]
        self.places = [node for node in graph.nodes if node.op == "placeholder"]
        self.result = graph.output_node().args[0]

    @property
    def allows_everything(self) -> bool:
        result = self.result[0] if isinstance(self.result, tuple | list) else self.result
        return getattr(result, "target", None) in _ONES

    def over(self, axes: list[torch.Tensor], given: tuple[Any, ...], *scores: torch.Tensor) -> torch.Tensor:
        """The function at every position: (B, N, S, T), or of size 1 along the axes that it does not look at."""
        reads = [bool(scores) or bool(self.places[at].users) for at in range(4)]
        function: Callable[..., Any] = self._call
        for at in (3, 2, 1, 0):  # the innermost axis first: the outermost becomes the first of the result
            if reads[at]:
                mapped = tuple(0 if other == at else None for other in range(4))
                function = torch.vmap(function, in_dims=(*(0 for _ in scores), *mapped, *(None for _ in given)))
        # Python indexing with a traced scalar would read its value.
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

        with TransformGetItemToIndex():
            found = function(
                *scores, *(axis if read else axis[0] for axis, read in zip(axes, reads, strict=True)), *given
            )
        for at, read in enumerate(reads):
            found = found if read else found.unsqueeze(at)
        return found

    def _call(self, *operands: Any) -> Any:
        found = self.function(*operands)
        return found[0] if isinstance(found, tuple | list) else found


def _row_results(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logarithm of the sum and the maximum of each row, both to base 2."""
    sums = torch.where((logits == -math.inf).all(dim=-1), -math.inf, logits.logsumexp(dim=-1))
    return sums / math.log(2), logits.amax(dim=-1) / math.log(2)
