"""Keeping torch's chatter (warnings, log lines, progress prints) away from the user while it traces."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from unittest import mock

__all__ = ["quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide Python warnings and log records up to ERROR: what fails is raised. Restored on leaving."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), _no_partial_graphs():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _no_partial_graphs() -> Iterator[None]:
    """torch.export prints the graph it had so far, hundreds of lines, whenever it fails."""
    import torch.export._trace as module

    with mock.patch.object(module, "print", _say_nothing, create=True):
        yield


def _say_nothing(*_args: object, **_kwargs: object) -> None:
    return
