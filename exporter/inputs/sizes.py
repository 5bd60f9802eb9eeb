"""Choose example sizes that can be mistaken for nothing else in the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count
from typing import Any

from ...runtime.shapes import symbols_of
from .spec import InputSpec

__all__ = ["Limits", "SizeChooser", "choose_sizes", "limit_of", "numbers_of"]

#: Smallest and largest example size per dimension name.
Limits = dict[str, tuple[int, int | None]]

_LENGTHS = ("seq", "len", "time", "token", "pos", "ctx")
_MAX_DEPTH = 5
#: Attributes and config fields whose integers are no sizes: positions in a list, label and token ids.
_NO_SIZES = ("idx", "index", "indices", "layer_id", "label", "token", "params")


class SizeChooser:
    """Hands out sizes >= 2, all different, none of them a number that the model is made of.

    A size that equals a width or a head count could hide an axis that the tracer lost: the constant it leaves
    behind looks right. Primes come first, so that no product of two sizes is a third one either.

    Args:
        taken: Numbers of the model: config values, shapes of its weights.
    """

    def __init__(self, taken: Iterable[int]) -> None:
        self._taken = {int(number) for number in taken}

    def pick(self, *, at_least: int = 2, at_most: int | None = None) -> int:
        """Choose a free size of at least ``at_least``; within ``at_most`` if any number is left there."""
        for size in _candidates(max(2, at_least), at_most):
            if size not in self._taken:
                self._taken.add(size)
                return size
        # A model with tiny limits leaves nothing free: distinct from nothing is better than out of range.
        return max(2, min(at_least, at_most or at_least))


def _candidates(start: int, stop: int | None) -> Iterator[int]:
    if stop is None:
        return (size for size in count(start) if _is_prime(size))
    window = range(start, stop + 1)
    return chain((size for size in window if _is_prime(size)), window, range(start - 1, 1, -1))


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def numbers_of(module: Any) -> set[int]:
    """Collect every size a module is made of: shapes of its weights, integers of its config, head_dim."""
    found: set[int] = set()
    for tensor in chain(module.parameters(), module.buffers()):
        found.update(int(size) for size in tensor.shape)
    for part in module.modules():
        # nn.MultiheadAttention and hand-written attention keep their head count as a plain attribute.
        found.update(v for k, v in vars(part).items() if type(v) is int and v > 1 and _is_size(k))
    config = getattr(module, "config", None)
    if config is not None:
        values = config.to_dict() if hasattr(config, "to_dict") else getattr(config, "__dict__", {})
        found.update(_integers(values, 0))
    heads = [n for n in found if 2 <= n <= 256]
    found.update(width // n for width in list(found) if width > 256 for n in heads if width % n == 0)
    return {number for number in found if number > 1}


def _integers(value: Any, depth: int) -> Iterator[int]:
    if type(value) is int:
        yield value
    elif depth < _MAX_DEPTH and isinstance(value, Mapping):
        for key, item in value.items():
            if _is_size(str(key)):
                yield from _integers(item, depth + 1)
    elif depth < _MAX_DEPTH and isinstance(value, list | tuple) and len(value) < 1000:
        for item in value:
            yield from _integers(item, depth + 1)


def _is_size(name: str) -> bool:
    return not any(word in name.lower() for word in _NO_SIZES)


def choose_sizes(specs: tuple[InputSpec, ...], taken: set[int], limits: Limits) -> dict[str, int]:
    """Choose a size for every dimension name: distinct, free, within its limits.

    Args:
        specs: The inputs.
        taken: Numbers of the model, see :func:`numbers_of`.
        limits: Bounds by dimension name; must hold "batch" and "seq", which others fall back to.
    """
    written = {dim for spec in specs for dim in spec.dims if isinstance(dim, int)}
    chooser = SizeChooser(taken | written)
    sizes: dict[str, int] = {}
    for dim in (name for spec in specs for size in spec.dims for name in symbols_of(size)):
        if dim not in sizes:
            low, high = limit_of(dim, limits)
            sizes[dim] = chooser.pick(at_least=low if high is None else min(low, high), at_most=high)
    return sizes


def limit_of(dim: str, limits: Limits) -> tuple[int, int | None]:
    """The smallest and largest example size of a dimension, by its name or by what the name means."""
    if dim in limits:
        return limits[dim]
    if "batch" in dim.lower() or dim.lower() in ("b", "n"):
        return limits["batch"]
    return (5, limits["seq"][1]) if any(word in dim.lower() for word in _LENGTHS) else (5, None)
