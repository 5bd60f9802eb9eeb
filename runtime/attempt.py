"""Running one side of a comparison, where a refusal to run is a finding and not an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from .errors import DeploymlBug
from .isolate import is_out_of_memory, out_of_memory

__all__ = ["Runner", "attempt", "in_one_line"]

#: What onnxruntime adds that no reader needs: how it begins, and the place and signature in its own source.
_NOISE: Final = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Non-zero status code returned )?"
    r"|\S*/onnxruntime_src/\S+:\d+ [^()]*\([^()]*\) (const )?"
)

#: Named arrays to the outputs in order.
Runner = Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]


def attempt(run: Runner, feeds: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray] | None, str]:
    """Outputs of a run, copied out of whatever the runner may reuse, or None and the reason in one line.

    Any exception counts as a refusal: torch, onnxruntime (whose classes share no base below ``Exception``) and the
    model's own code each raise what they like, and which of the two sides refuses is what the caller judges.

    Raises:
        ToolchainError: if memory ran out, which says nothing about the model.
        DeploymlBug: as it is.
    """
    try:
        return [np.array(value) for value in run(feeds)], ""
    except DeploymlBug:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory("the run at " + _sizes(feeds)) from error
        return None, in_one_line(error)


def in_one_line(error: BaseException, limit: int = 200) -> str:
    """The class and the beginning of the text of an exception, without onnxruntime's source places."""
    text = _NOISE.sub("", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:limit]}" if text else type(error).__name__


def _sizes(feeds: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name}{list(np.shape(array))}" for name, array in feeds.items()) or "no inputs"
