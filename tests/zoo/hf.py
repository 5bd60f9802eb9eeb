"""Building tiny models of transformers by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from .entry import Entry, Inputs, redraw

__all__ = ["CAUSAL", "TEXT", "Unavailable", "hf"]

#: Sizes of a text model as most configurations spell them.
TEXT: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
#: The same for a decoder.
CAUSAL: Final[dict[str, Any]] = {**TEXT, "use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


class Unavailable(Exception):
    """The installed transformers has no such class, or the class no such implementation of attention."""


def hf(
    name: str,
    model: str,
    config: str,
    inputs: Inputs,
    sizes: Mapping[str, Any],
    *,
    part: str | None = None,
    **rest: Any,
) -> Entry:
    """An entry for a class of transformers; ``part`` names a sub-module to take instead of the whole."""

    def build(impl: str) -> nn.Module:
        import transformers

        if not hasattr(transformers, model):
            raise Unavailable(f"transformers {transformers.__version__} has no {model}")
        settings = getattr(transformers, config)(**sizes)
        settings._attn_implementation = impl
        torch.manual_seed(0)
        try:
            module = getattr(transformers, model)(settings)
        except ValueError as error:
            if "attn_implementation" not in str(error):
                raise
            raise Unavailable(f"{model} has no {impl} attention in transformers {transformers.__version__}") from error
        return redraw(module if part is None else module.get_submodule(part))

    return Entry(name=name, build=build, inputs=inputs, **rest)
