"""Load torch.export programs (.pt2), without running code that a file may bring along."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from .archive import open_archive
from .opened import Opened, Trust
from .program_screen import suspicious
from .wording import brief, export_command, printable

__all__ = ["load_program", "training_nodes"]

_FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_SHOWN = 12
_LOGGERS = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")


def load_program(path: Path, trust: Trust) -> Opened:
    """Load a ``torch.export.save`` file.

    Raises:
        InputError: Damaged, made by an incompatible torch, or it holds code and ``--trust-pickle`` was not given.
    """
    import torch

    found = () if trust.pickle else suspicious(open_archive(path))
    if found:
        listed = "\n     ".join(map(printable, found[:_SHOWN]))
        raise InputError(
            f"{path.name} could run code when loaded. It was not loaded. It holds:\n     {listed}",
            hint=f"If you trust whoever made the file: {export_command(path)} --trust-pickle",
        )
    try:
        with path.open("rb") as file, _tensors_only(not trust.pickle), _quiet():
            program = torch.export.load(file)
    except Exception as e:
        raise InputError(
            f"{path.name} cannot be loaded as a torch.export program by torch {torch.__version__}: "
            f"{brief(e.__cause__ or e)}",
            hint="Export and save the module anew with this torch; programs load only where their operators exist.",
        ) from e
    return Opened(program, kind="program")


def training_nodes(program: Any) -> tuple[str, ...]:
    """Name the nodes of a program that behave as in training (dropout on, batch statistics), which stays so."""
    found = []
    for node in program.graph.nodes:
        name = str(node.target)
        switches = node.args if "dropout" in name else node.args[5:6] if "batch_norm" in name else ()
        if any(argument is True for argument in switches):
            found.append(node.name)
    return tuple(found)


@contextlib.contextmanager
def _tensors_only(force: bool) -> Iterator[None]:
    """Make every torch.load inside torch refuse objects; its own fallback would run them."""
    before = os.environ.get(_FORCE)
    if force:
        os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        if force and before is None:
            os.environ.pop(_FORCE, None)
        elif force and before is not None:
            os.environ[_FORCE] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch logs a whole traceback before it raises; the user gets one message, from us."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
