"""Read from a module what its integer inputs may hold."""

from __future__ import annotations

from typing import Any

from .fields import field_of
from .values import Vocabulary

__all__ = ["vocabulary_of"]

_TYPE_TABLES = ("type", "segment")
_POSITION_TABLES = ("pos", "wpe")


def vocabulary_of(module: Any) -> Vocabulary:
    """Derive bounds for token ids and the like from the config and the embedding tables of a module."""
    tables = _tables(module)
    types = [size for name, size in tables if any(word in name for word in _TYPE_TABLES)]
    positions = [size for name, size in tables if any(word in name for word in _POSITION_TABLES)]
    others = [size for name, size in tables if size not in types and size not in positions]
    bound = min(others or [size for _, size in tables] or [2])
    tokens = field_of(module, "vocab_size", ("text_config", "decoder", "encoder"))
    tokens = min(tokens, bound) if isinstance(tokens, int) and tokens > 1 and others else tokens or bound
    special = {
        key: field_of(module, f"{key}_token_id", ("text_config", "decoder"))
        for key in (
            "pad",
            "bos",
            "eos",
            "mask",
            "unk",
            "sep",
            "cls",
            "decoder_start",
            "image",
            "audio",
            "video",
        )
    }
    ids = {key: _first(value, tokens) for key, value in special.items()}
    known = [value for value in ids.values() if value is not None]
    return Vocabulary(
        tokens=tokens,
        types=min(types or [2]),
        indices=min([size for _, size in tables] or [2]),
        places=field_of(module, "max_2d_position_embeddings", ("text_config", "encoder")) or 2,
        pad=ids["pad"] or 0,
        eos=ids["eos"],
        start=ids["decoder_start"],
        avoid=frozenset([*known, 0]) if tokens > 2 * len(known) + 2 else frozenset(),
    )


def _tables(module: Any) -> list[tuple[str, int]]:
    """Name and length of every embedding table; subclasses of nn.Embedding count."""
    from torch import nn

    found = []
    for name, part in module.named_modules():
        if isinstance(part, nn.Embedding | nn.EmbeddingBag):
            found.append((name.lower(), int(part.num_embeddings)))
    return found


def _first(value: Any, bound: int) -> int | None:
    if isinstance(value, list | tuple):
        value = next(iter(value), None)
    return value if type(value) is int and 0 <= value < bound else None
