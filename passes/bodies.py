"""Function bodies of own operators: with them a model runs where the library is not registered."""

from __future__ import annotations

import onnx_ir as ir

from ..custom_ops import DOMAIN, flash_attention, mixture_of_experts, skip_normalization

__all__ = ["add_bodies"]


def add_bodies(model: ir.Model) -> None:
    """Give the model the function body of every own operator it uses, and take away those it does not use."""
    used = sorted({n.op_type for n in model.graph.all_nodes() if n.domain == DOMAIN})
    for identifier in [key for key in model.functions if key[0] == DOMAIN and key[1] not in used]:
        del model.functions[identifier]
    for op_type in used:
        family = op_type.split("_")[0]
        if family == flash_attention.NAME:
            flash_attention.add_function(model, flash_attention.Signature.of(op_type))
        if family == skip_normalization.NAME:
            skip_normalization.add_function(model, skip_normalization.Signature.of(op_type))
        if family == mixture_of_experts.NAME:
            mixture_of_experts.add_function(model, mixture_of_experts.Signature.of(op_type))
