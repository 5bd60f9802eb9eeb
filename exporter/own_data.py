"""The user's own inputs as parity cases: files of a folder, or whatever a generator yields."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..runtime.errors import InputError
from ..runtime.feeds import Case, InputSpec

__all__ = ["own_cases"]

_FORMS: Final = (".npz", ".pt")
_HINT: Final = "give a folder of .npz (numpy.savez) or .pt files (torch.save of a dict), one set of inputs each"

_PYTHON_HINT: Final = 'give a folder, or a list of {"input_ids": array, ...}, as a generator may yield them too'


def own_cases(data: str | Path | Iterable[Mapping[str, Any]], specs: Sequence[InputSpec]) -> tuple[Case, ...]:
    """Cases to compare on.

    Args:
        data: A folder of ``.npz`` or ``.pt`` files, one such file, or mappings from input names to arrays.
        specs: The model's inputs.

    Raises:
        InputError: if there are none, or one does not fit the inputs; names the file.
    """
    if not isinstance(data, str | Path | Iterable):
        raise InputError(f"data is {_a(data)}, and not inputs to compare on", hint=_PYTHON_HINT)
    named = _files(Path(data).expanduser()) if isinstance(data, str | Path) else _given(data)
    cases = tuple(_case(name, arrays, specs) for name, arrays in named)
    if not cases:
        raise InputError("there are no inputs to compare on", hint=_HINT)
    return cases


def _files(place: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not place.exists():
        raise InputError(f"there is no '{place}'", hint=_HINT)
    paths = sorted(p for p in place.iterdir() if p.suffix in _FORMS) if place.is_dir() else [place]
    for path in paths:
        from .inputs.file import read_inputs  # imports torch

        positional, arrays = read_inputs(path)
        if positional:
            raise InputError(f"the arrays in {path.name} have no names", hint=_HINT)
        yield path.name, arrays


def _given(data: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, arrays in enumerate([data] if isinstance(data, Mapping) else data):
        if not isinstance(arrays, Mapping):
            raise InputError(f"data {number} is {_a(arrays)}, and no set of named arrays", hint=_PYTHON_HINT)
        yield f"data {number}", arrays


def _a(value: object) -> str:
    return f"of the type {type(value).__name__}"


def _case(name: str, arrays: Mapping[str, Any], specs: Sequence[InputSpec]) -> Case:
    expected = [spec.name for spec in specs]
    if sorted(arrays) != sorted(expected):
        raise InputError(
            f"{name} holds {', '.join(sorted(arrays)) or 'nothing'}, the model takes {', '.join(expected)}",
            hint="name the arrays as the model's inputs",
        )
    feeds = {spec.name: np.asarray(arrays[spec.name]) for spec in specs}
    for spec in specs:
        found = feeds[spec.name]
        if found.dtype.name != spec.dtype or found.ndim != len(spec.shape):
            raise InputError(
                f"{spec.name} of {name} is {found.dtype}{list(found.shape)}, the model takes {spec.dtype} of "
                f"{len(spec.shape)} axes",
                hint="save it with the dtype and axes of the model's input; nothing is cast",
            )
        if any(isinstance(dim, int) and dim != size for dim, size in zip(spec.shape, found.shape, strict=True)):
            axes = ", ".join(str(dim) for dim in spec.shape)
            raise InputError(
                f"{spec.name} of {name} is {list(found.shape)}, the model takes [{axes}]",
                hint="an axis that is a number in the model has that size; export with a name for it where it varies",
            )
    masks = tuple(feeds[s.name] != 0 for s in specs if s.role == "attention-mask" and feeds[s.name].ndim == 2)
    return Case(name=name, feeds=feeds, masks=masks)
