"""TorchScript modules: converted to a traceable module, since torch.export refuses them."""

from __future__ import annotations

from typing import Any

import torch

from ...runtime.errors import InputError, ToolchainError, UnsupportedError
from ..loaded import Loaded
from .inputs import examples_of

__all__ = ["as_module"]

_HINT = "Export the original Python module, or a program saved by torch.export.save, instead."


def as_module(loaded: Loaded) -> torch.nn.Module:
    """Convert a loaded TorchScript module to one that torch.export traces.

    Raises:
        InputError: the example inputs do not fit, or are missing.
        ToolchainError: this torch has no converter.
        UnsupportedError: the archive uses what the converter does not know.
    """
    converter = _converter(loaded)
    examples = examples_of(loaded)
    args, _ = examples.call()
    if not args:
        raise InputError(
            f"The TorchScript archive '{loaded.source or loaded.name}' needs example inputs to be converted.",
            hint="Describe them with --input NAME:DTYPE[DIMS] or --inputs FILE.npz.",
        )
    try:
        program = converter(loaded.module, args).convert()
    except Exception as error:  # the converter raises plain RuntimeErrors of every kind
        absent = [leaf.name for leaf in examples.leaves if leaf.value is None]
        if absent:
            raise UnsupportedError(
                f"The TorchScript archive '{loaded.source or loaded.name}' has optional arguments that were left "
                f"out ({', '.join(absent)}); the converter cannot follow them.",
                hint=f"Give example inputs for them. {_HINT}",
            ) from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnsupportedError(
            f"The TorchScript archive '{loaded.source or loaded.name}' cannot be converted: "
            f"{(lines or [type(error).__name__])[0][:240]}",
            hint=_HINT,
        ) from error
    return program.module(check_guards=False)


def _converter(loaded: Loaded) -> Any:
    # Private in torch 2.13 and the only way from TorchScript to torch.export.
    try:
        from torch._export.converter import TS2EPConverter
    except ImportError as error:
        raise ToolchainError(
            f"torch {torch.__version__} cannot convert the TorchScript archive "
            f"'{loaded.source or loaded.name}' to torch.export.",
            hint=_HINT,
        ) from error
    return TS2EPConverter
