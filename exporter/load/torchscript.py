"""Load TorchScript archives."""

from __future__ import annotations

import warnings
from pathlib import Path

from ...runtime.errors import InputError
from .opened import Opened
from .wording import brief

__all__ = ["load_torchscript"]


def load_torchscript(path: Path) -> Opened:
    """Load a ``torch.jit.save`` file on the CPU. TorchScript is a language of its own; no Python of the file runs.

    Raises:
        InputError: Damaged, or it calls operators that this torch does not have.
    """
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location="cpu")
    except Exception as e:
        raise InputError(
            f"{path.name} cannot be loaded as TorchScript by torch {torch.__version__}: {brief(e)}",
            hint="If it calls custom operators, import their package first (from Python); else copy the file again.",
        ) from e
    return Opened(module, kind="torchscript")
