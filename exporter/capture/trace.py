"""Tracing a loaded model into a program with ``torch.export``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from .causal_bias import causal_bias_as_mask
from .causal_by_size import causal_by_size
from .conversions import idle_conversions
from .data_of_tensors import data_is_detached
from .inputs import Examples
from .long_products import long_products
from .named_arguments import named_arguments
from .outputs import Outputs
from .quiet import quiet
from .recurrences import recurrences_whole
from .whole_numbers import whole_numbers

__all__ = ["fixed_size", "quiet_run", "slow_paths", "trace", "user_tensors"]


@contextlib.contextmanager
def slow_paths() -> Iterator[None]:
    """Keep modules on the path that calls scaled-dot-product attention, for tracing and for reference runs.

    ``nn.MultiheadAttention`` and ``nn.TransformerEncoder`` otherwise take one opaque kernel in inference, and
    with a padding mask nested tensors, which also set padded rows to zero and cut the sequence.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def trace(
    module: torch.nn.Module,
    examples: Examples,
    outputs: Outputs | None = None,
    *,
    strict: bool = False,
    broadcast_at_one: bool = False,
    whole: bool = False,
) -> ExportedProgram:
    """Trace a module with the declared axes dynamic and its result flattened to tensors.

    Raises whatever torch raises.

    Args:
        module: The model.
        examples: Inputs and declared axes.
        outputs: Receives the names of the results.
        strict: Let torch read the bytecode of the model instead of running it.
        broadcast_at_one: Take a size that is 1 in the examples for 1, where broadcasting depends on it.
        whole: Let ``int`` of a size and ``len`` of a tensor be sizes in the code of the model.
    """
    args, kwargs = examples.call()
    # Sizes 0 and 1 are then no reason to make an axis static: a batch of one stays a batch.
    oblivious: Any = torch.fx.experimental._config.patch(backed_size_oblivious=not broadcast_at_one)
    handle = module.register_forward_hook(outputs or Outputs())
    try:
        with (
            slow_paths(),
            oblivious,
            torch.no_grad(),
            recurrences_whole(module),
            idle_conversions(),
            long_products(),
            causal_bias_as_mask(),
            causal_by_size(module),
            named_arguments(module, args, kwargs),
            data_is_detached(),
            whole_numbers(module) if whole else contextlib.nullcontext(),
        ):
            return torch.export.export(
                module,
                args,
                kwargs,
                dynamic_shapes=examples.shapes() if any(True for _ in examples.dynamic()) else None,
                strict=strict,
            )
    finally:
        handle.remove()


def quiet_run(module: torch.nn.Module, examples: Examples) -> Any:
    """Run a module eagerly on the examples, on the same paths as when it is traced."""
    args, kwargs = examples.call()
    with quiet(), slow_paths(), torch.no_grad():
        return module(*args, **kwargs)


def user_tensors(program: ExportedProgram) -> list[torch.Tensor]:
    """The traced (fake) tensors of a program's user inputs, in order."""
    wanted = set(program.graph_signature.user_inputs)
    found = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    return [value for name, value in found.items() if name in wanted and isinstance(value, torch.Tensor)]


def fixed_size(size: Any) -> int | None:
    """The number an axis of a traced tensor is fixed to, also when torch still wraps it; None when it varies."""
    if isinstance(size, int):
        return size
    found = size.node.maybe_as_int()
    return int(found) if found is not None else None
