"""``scaled_dot_product_attention(..., is_causal=query.shape[-2] > 1)``: a condition on a size, while torch traces."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, Final

import torch

from .whole_numbers import namespaces

__all__ = ["causal_by_size"]

#: Which argument ``is_causal`` is where it is given by its place.
_PLACE: Final = 5


@contextlib.contextmanager
def causal_by_size(module: torch.nn.Module) -> Iterator[None]:
    """Let torch decide by the example inputs whether such an attention is causal, inside the block.

    torch takes a Python bool there and nothing else. Whether the answer holds at other sizes is found by running the
    traced form at some (:func:`.check.check_dynamic`). A file of the model may have the function under a name of its
    own (``from torch.nn.functional import scaled_dot_product_attention``).
    """
    before = torch.nn.functional.scaled_dot_product_attention

    @functools.wraps(before)
    def attention(*args: Any, **kwargs: Any) -> torch.Tensor:
        if len(args) > _PLACE:
            args = (*args[:_PLACE], _decided(args[_PLACE]), *args[_PLACE + 1 :])
        elif "is_causal" in kwargs:
            kwargs["is_causal"] = _decided(kwargs["is_causal"])
        return before(*args, **kwargs)

    places = [vars(torch.nn.functional), *namespaces(module)]
    given = [(names, name) for names in places for name, value in names.items() if value is before]
    for names, name in given:
        names[name] = attention
    try:
        yield
    finally:
        for names, name in given:
            names[name] = before


def _decided(condition: Any) -> Any:
    return bool(condition) if isinstance(condition, torch.SymBool) else condition
