"""Inputs as text: ``NAME:DTYPE[batch,seq,64]``; names are dynamic axes, numbers are fixed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...runtime.errors import InputError

__all__ = ["DTYPES", "InputSpec", "parse_specs"]

#: Every dtype an input may have; torch's names.
DTYPES = (
    "float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
_SHORT = {"float": "float32", "double": "float64", "half": "float16", "long": "int64", "int": "int64"}
_SHAPE = re.compile(r"(?P<name>[^:\[\]]+):(?P<dtype>[^\[\]]+)\[(?P<dims>[^\[\]]*)\]")
_NAME = re.compile(r"[A-Za-z_]\w*(\.\w+)*")
_DIM = re.compile(r"[A-Za-z_]\w*(\s*\+\s*\w+)*")
_LARGEST = 1 << 31
_EXAMPLE = "for example --input input_ids:int64[batch,seq] --input x:float32[batch,3,224,224]"


@dataclass(frozen=True)
class InputSpec:
    """One input tensor.

    Attributes:
        name: Name of a parameter of ``forward``.
        dtype: torch's name of its dtype, one of :data:`DTYPES`.
        dims: Per axis a fixed size, the name of a dynamic dimension, or a sum of them ("past + seq"). One name is one
            size everywhere.
    """

    name: str
    dtype: str
    dims: tuple[int | str, ...]

    @property
    def dynamic(self) -> dict[int, str]:
        """The dynamic axes: name of the dimension by axis."""
        return {axis: dim for axis, dim in enumerate(self.dims) if isinstance(dim, str)}

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.dims))}]"


def parse_specs(texts: Sequence[str]) -> tuple[InputSpec, ...]:
    """Parse several ``NAME:DTYPE[DIMS]``.

    Raises:
        InputError: Malformed, an unknown dtype, a bad dimension, or one name twice.
    """
    specs = tuple(_parse(text) for text in texts)
    names = [spec.name for spec in specs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"--input names {', '.join(twice)} twice", hint="Give every input once.")
    return specs


def _parse(text: str) -> InputSpec:
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"--input {text!r} is not NAME:DTYPE[DIMS]", hint=f"Write it so, {_EXAMPLE}.")
    name = match["name"].strip()
    if _NAME.fullmatch(name) is None:
        raise InputError(f"--input {text!r}: {name!r} is no name of a parameter", hint=f"Write it so, {_EXAMPLE}.")
    dims = tuple(_dim(part.strip(), text) for part in match["dims"].split(",")) if match["dims"].strip() else ()
    return InputSpec(name, _dtype(match["dtype"].strip(), text), dims)


def _dtype(given: str, text: str) -> str:
    name = given.lower().removeprefix("torch.")
    name = _SHORT.get(name, name)
    if name in DTYPES:
        return name
    close = difflib.get_close_matches(name, [*DTYPES, *_SHORT], n=2)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise InputError(f"--input {text!r}: there is no dtype {given!r}", hint=f"{hint}Known: {', '.join(DTYPES)}.")


def _dim(given: str, text: str) -> int | str:
    if given.isascii() and given.isdigit():
        size = int(given)
        if 1 <= size < _LARGEST:
            return size
        raise InputError(f"--input {text!r}: an axis cannot have size {given}", hint="Give a size of 1 or more.")
    if _DIM.fullmatch(given):
        return " + ".join(part.strip() for part in given.split("+"))
    raise InputError(
        f"--input {text!r}: {given!r} is neither a size nor a name",
        hint="An axis is a number (fixed), a name such as batch or seq (dynamic), or a sum such as past+seq.",
    )
