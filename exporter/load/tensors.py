"""Load safetensors files: names and tensors only, so a factory has to build the module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .wording import brief

__all__ = ["read_safetensors"]


def read_safetensors(path: Path) -> dict[str, Any]:
    """Read all tensors of a safetensors file.

    Raises:
        InputError: Truncated or damaged.
    """
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as e:
        raise InputError(
            f"{path.name} is a truncated or damaged safetensors file ({brief(e)})",
            hint="Copy or download it again and compare its size with the original.",
        ) from e
