"""``--with-past``: a decoder of Hugging Face with its key-value cache as inputs and outputs of the graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...runtime.errors import InputError, UnsupportedError
from ..inputs.sizes import SizeChooser, numbers_of

__all__ = ["WithPast", "with_past"]

_HINT = "Leave --with-past out: the graph then computes every token of its input anew."


class WithPast(torch.nn.Module):
    """A decoder whose cache comes in as tensors and goes out as tensors.

    Inputs: ``input_ids`` (B, S); ``attention_mask`` (B, P + S), 1 where a token is; ``past_key_values``, for each layer
    a key and a value (B, kv_heads, P, head_dim). Outputs: what the decoder gives first, and ``present``, for each layer
    the key and value of all P + S tokens. Positions are counted from the mask, as ``generate`` does: padding on either
    side counts for nothing.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.config = getattr(model, "config", None)
        self._takes_places = "position_ids" in inspect.signature(model.forward).parameters

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: Sequence[Mapping[str, torch.Tensor]],
    ) -> dict[str, Any]:
        """One step of decoding, over any number of new tokens."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, past in enumerate(past_key_values):
            cache.update(past["key"], past["value"], layer)
        places: dict[str, torch.Tensor] = {}
        if self._takes_places:
            counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            places["position_ids"] = counted[:, attention_mask.shape[1] - input_ids.shape[1] :]
        result = self.model(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=True, **places
        )
        name = "logits" if hasattr(result, "logits") else "last_hidden_state"
        present = [{"key": layer.keys, "value": layer.values} for layer in cache.layers]
        return {name: getattr(result, name), "present": present}


def with_past(module: Any, source: str) -> tuple[WithPast, dict[str, Any], dict[str, Any]]:
    """Wrap a decoder, and make example inputs for it.

    Args:
        module: The model, in ``eval()``.
        source: Its name in messages.

    Returns:
        The wrapped model, its example inputs by name and their dynamic axes: ``batch``, ``seq`` and ``past``.

    Raises:
        InputError: it is no decoder of Hugging Face, or it gives no cache.
        UnsupportedError: it keeps something else than one key and one value a layer.
    """
    config = getattr(module, "config", None)
    takes = inspect.signature(module.forward).parameters if isinstance(module, torch.nn.Module) else {}
    wanted = {"input_ids", "attention_mask", "past_key_values"}
    if config is None or getattr(config, "is_encoder_decoder", False) or not wanted <= set(takes):
        raise InputError(
            f"{source} is no decoder with input_ids, attention_mask and past_key_values, which --with-past needs",
            hint=_HINT,
        )
    chooser = SizeChooser(numbers_of(module))
    batch, seq, past = chooser.pick(at_least=2), chooser.pick(at_least=3), chooser.pick(at_least=3)
    generator = torch.Generator().manual_seed(20241)
    cached = [
        [torch.empty(batch, heads, past, size).normal_(generator=generator) for heads, size in pair]
        for pair in _layers(module, source)
    ]
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    mask = torch.ones(batch, past + seq, dtype=torch.long)
    mask[-1, 0] = 0
    inputs = {
        "input_ids": torch.arange(batch * seq).reshape(batch, seq) % max(2, int(getattr(config, "vocab_size", 2))),
        "attention_mask": mask,
        "past_key_values": [{"key": key.to(dtype), "value": value.to(dtype)} for key, value in cached],
    }
    axes = {0: "batch", 2: "past"}
    shapes = {
        "input_ids": {0: "batch", 1: "seq"},
        "attention_mask": {0: "batch", 1: "past + seq"},
        "past_key_values": [{"key": axes, "value": axes} for _ in cached],
    }
    return WithPast(module), inputs, shapes


def _layers(module: torch.nn.Module, source: str) -> list[list[tuple[int, int]]]:
    """For key and value of each layer their heads and head size, read off the cache of a first call."""
    try:
        with torch.no_grad():
            result = module(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    except Exception as error:  # whatever the model's own code raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source} does not run on two tokens with use_cache=True: {reason}", hint=_HINT) from error
    layers = getattr(getattr(result, "past_key_values", None), "layers", None) or []
    if not layers:
        raise InputError(f"{source} gives no cache, so it is no decoder that --with-past could serve", hint=_HINT)
    pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
    if any(not isinstance(tensor, torch.Tensor) or tensor.dim() != 4 for pair in pairs for tensor in pair):
        raise UnsupportedError(
            "its cache holds something else than a key and a value for each layer.", hint=_HINT, where=source
        )
    return [[(int(t.shape[1]), int(t.shape[3])) for t in pair] for pair in pairs]
