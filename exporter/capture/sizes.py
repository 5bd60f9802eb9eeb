"""Choosing sizes for dynamic axes so that no two of them are equal by accident."""

from __future__ import annotations

from collections.abc import Iterator

from .inputs import Examples

__all__ = ["lowest_size", "size_variants", "unused_size"]


def size_variants(examples: Examples) -> Iterator[Examples]:
    """The examples at the sizes worth tracing at, best first.

    A size of 0 or 1, or one that equals another axis, lets torch conclude things that hold for the example only.
    So the first variant has distinct sizes of 2 and more; the examples as given follow (a model may accept only
    those), and then sizes that all differ from the given ones.
    """
    given = examples.sizes()
    if not given or any(axis.derived for _, _, axis in examples.dynamic()):
        yield examples
        return
    distinct = _distinct(examples, given)
    if distinct != given:
        yield examples.resized(distinct)
    yield examples
    taken = {*given.values(), *distinct.values()}
    shifted: dict[str, int] = {}
    for name, size in distinct.items():
        shifted[name] = unused_size(examples, name, size, taken)
        taken.add(shifted[name])
    yield examples.resized(shifted)


def _distinct(examples: Examples, given: dict[str, int]) -> dict[str, int]:
    taken = _fixed_sizes(examples)
    chosen: dict[str, int] = {}
    for name, size in given.items():
        chosen[name] = size if size > 1 and size not in taken else unused_size(examples, name, size, taken)
        taken.add(chosen[name])
    return chosen


def _fixed_sizes(examples: Examples) -> set[int]:
    return {
        size
        for leaf in examples.tensors
        for at, size in enumerate(leaf.value.shape)
        if at not in leaf.axes or not leaf.axes[at].name
    }


def unused_size(examples: Examples, name: str, near: int, taken: set[int]) -> int:
    """The size next above ``near`` (next below, where the declared maximum ends) that is at least 2 and not taken.

    Returns ``near`` itself when the declared bounds leave nothing else.
    """
    bounds = [axis for _, _, axis in examples.dynamic() if axis.name == name]
    low = max([2, *(axis.low for axis in bounds if axis.low is not None)])
    high = min([near + len(taken) + 64, *(axis.high for axis in bounds if axis.high is not None)])
    candidates = [*range(max(near + 1, low), high + 1), *range(min(near, high), low - 1, -1)]
    return next((size for size in candidates if size not in taken), near)


def lowest_size(examples: Examples, name: str) -> int:
    """The smallest size that an axis is declared to take, 1 where nothing is declared."""
    return max([1, *(axis.low or 1 for _, _, axis in examples.dynamic() if axis.name == name)])
