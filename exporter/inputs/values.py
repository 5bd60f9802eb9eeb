"""Fill example tensors: tokens within the vocabulary, masks with one padded row, floats from a fixed seed."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.feeds import role_of
from ...runtime.shapes import evaluate
from .spec import InputSpec

__all__ = ["Vocabulary", "fill_tensors"]

_TOKENS = ("ids", "id", "tokens", "token", "idx", "input", "inputs", "src", "tgt", "text", "x")
_SEED = 20241


@dataclass(frozen=True)
class Vocabulary:
    """What integer inputs may hold.

    Attributes:
        tokens: Number of token ids.
        types: Number of token types (segments).
        indices: A bound that every embedding table of the model honours.
        places: Number of places in the tables of coordinates on a page.
        pad: Id that fills padded positions.
        eos: Id that ends a row, or None.
        start: First id of a decoder's row, or None.
        avoid: Special ids that must not occur by chance.
    """

    tokens: int = 100
    types: int = 2
    indices: int = 2
    places: int = 2
    pad: int = 0
    eos: int | None = None
    start: int | None = None
    avoid: frozenset[int] = frozenset()


def fill_tensors(specs: Sequence[InputSpec], sizes: Mapping[str, int], vocabulary: Vocabulary) -> dict[str, Any]:
    """Make one tensor per spec; the same call gives the same values.

    Args:
        specs: The inputs.
        sizes: Size of every named dimension.
        vocabulary: Bounds of integer inputs.

    Returns:
        Tensors by input name, on the CPU. Where an id input and a mask share their axes, the padded tail of the
        last row holds the pad id.
    """
    tensors = {spec.name: _fill(spec, _shape(spec, sizes), vocabulary) for spec in specs}
    for spec in specs:
        mask = _mask_for(spec, specs)
        if mask is not None and _role(spec) == "tokens":
            _pad(tensors[spec.name], tensors[mask.name], vocabulary)
    return tensors


def _shape(spec: InputSpec, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(dim, sizes) for dim in spec.dims)


def _role(spec: InputSpec) -> str:
    """What an input means, by its name and dtype."""
    name, words = spec.name.lower(), spec.name.lower().replace(".", "_").split("_")
    if "bbox" in name:
        return "boxes"
    if "mask" in name or spec.dtype == "bool" or _is_padding(spec):
        return "mask"
    if "float" in spec.dtype:
        return "floats"
    if "position" in name or name in ("pos", "pos_ids", "cache_position"):
        return "positions"
    if "type" in name or "segment" in name:
        return "types"
    return "tokens" if any(word in _TOKENS for word in words) else "indices"


def _fill(spec: InputSpec, shape: tuple[int, ...], vocabulary: Vocabulary) -> Any:
    import torch

    dtype = getattr(torch, spec.dtype)
    generator = torch.Generator().manual_seed(_SEED + zlib.crc32(spec.name.encode()))
    role = _role(spec)
    if role == "mask":
        return _mask(spec, shape, dtype)
    if role == "boxes":  # corners: left, top, right, bottom
        drawn = torch.rand(shape, generator=generator).sort(-1).values
        return drawn.to(dtype) if dtype.is_floating_point else (drawn * vocabulary.places).to(dtype)
    if role == "floats":
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    if role == "positions":
        length = shape[-1] if shape else 1
        return torch.arange(length).expand(shape).contiguous().to(dtype) if shape else torch.zeros((), dtype=dtype)
    bound = {"types": vocabulary.types, "tokens": vocabulary.tokens}.get(role, vocabulary.indices)
    bound = min(bound, torch.iinfo(dtype).max)
    drawn = torch.randint(0, max(1, bound), shape, generator=generator)
    return (_without(drawn, bound, vocabulary) if role == "tokens" else drawn).to(dtype)


def _without(drawn: Any, bound: int, vocabulary: Vocabulary) -> Any:
    """Move special ids that were drawn by chance to the nearest ordinary id."""
    import torch

    ordinary = [i for i in range(min(bound, 4096)) if i not in vocabulary.avoid]
    if not ordinary:
        return drawn
    special = torch.isin(drawn, torch.tensor(sorted(vocabulary.avoid), dtype=drawn.dtype))
    return torch.where(special, torch.tensor(ordinary)[drawn % len(ordinary)], drawn)


def _mask(spec: InputSpec, shape: tuple[int, ...], dtype: Any) -> Any:
    """Ones with the last row's tail off. A torch key-padding mask says the opposite: True is a padded position."""
    import torch

    mask = torch.ones(shape, dtype=torch.bool)
    if len(shape) >= 2 and shape[-1] >= 2:
        mask[(-1,) * (len(shape) - 1)][_kept(shape[-1]) :] = False
    return (~mask if _is_padding(spec) else mask).to(dtype)


def _is_padding(spec: InputSpec) -> bool:
    return role_of(spec.name, spec.dtype) == "key-padding-mask"


def _kept(length: int) -> int:
    return max(1, length - max(1, length // 3))


def _mask_for(spec: InputSpec, specs: Sequence[InputSpec]) -> InputSpec | None:
    """The mask that goes with an id input: of the same axes, and of the same side (decoder or not)."""
    side = spec.name.startswith("decoder")
    masks = [s for s in specs if _role(s) == "mask" and s.dims == spec.dims]
    return next((s for s in masks if s.name.startswith("decoder") == side), None)


def _pad(tokens: Any, mask: Any, vocabulary: Vocabulary) -> None:
    if tokens.dim() < 2 or tokens.shape != mask.shape:
        return
    length = tokens.shape[-1]
    kept = _kept(length)
    if vocabulary.eos is not None:
        tokens[..., -1] = vocabulary.eos
        tokens[-1, ..., kept - 1] = vocabulary.eos
    tokens[-1, ..., kept:] = vocabulary.pad
