"""Turning what torch says when it cannot trace a model into one plain message."""

from __future__ import annotations

import re
import traceback
from typing import Any, Final

import torch

from ...runtime.errors import DeploymlError, InputError, UnsupportedError
from ..source_map import Frame
from .inputs import Examples
from .trace import quiet_run

__all__ = ["is_data_dependent", "refusal", "user_frame"]

_HINT_OWN_CODE: Final = "Change that line so that it uses torch operators on tensors only, and export again."

#: (pattern in torch's message or exception class, reason, what to do), first match wins.
_KNOWN: Final = (
    (
        r"Could not extract specialized integer",
        "takes a Python number out of a tensor, whose value no graph can know in advance",
        "Keep the value a tensor, or compute the size from tensor shapes instead of tensor values.",
    ),
    (
        r"GuardOnDataDependentSymNode|data-dependent|DataDependentOutputException",
        "decides in Python by the values of a tensor, which no graph can know in advance",
        "Use torch.where or torch.cond on tensors, or compute the decision from shapes or a constructor option.",
    ),
    (
        r"\.numpy\(\)|numpy\.ndarray|Cannot convert.*to numpy",
        "turns a tensor into a NumPy array, so what follows is invisible to torch.export",
        "Use torch operators instead of NumPy there.",
    ),
    (
        r"DynamicOutputShapeException|data dependent output shape",
        "calls an operator whose result size depends on tensor values",
        "Use an operator with a fixed result size (a mask instead of an index list).",
    ),
    (
        r"must be bool, not SymBool",
        "passes a condition on a size to an operator that takes a Python bool",
        "Write bool(...) around the condition; if it is an attention's, call "
        "torch.nn.functional.scaled_dot_product_attention by this name.",
    ),
    (
        r"flex_attention",
        "calls flex_attention with functions that torch.export cannot follow",
        "Write score_mod and mask_mod with torch operators on their arguments and on tensors of the module, or call "
        "scaled_dot_product_attention.",
    ),
    (
        r"UnsupportedOperatorException|UnsupportedFakeTensorException|no fake impl|no meta|Meta.*kernel",
        "calls an operator that has no shape rule, so torch.export cannot follow it",
        "Register one with torch.library.register_fake, or use another operator.",
    ),
    (
        r"data_ptr|Cannot access data pointer|flash_attn|xformers",
        "calls a compiled kernel that reads tensor memory directly",
        "Load the model with attn_implementation='sdpa', or replace the kernel by torch operators.",
    ),
    (
        r"mutat|side effect|attributes .* were assigned",
        "changes the model's own state while it runs",
        "Return the new value instead of storing it on the module.",
    ),
)


def is_data_dependent(error: BaseException) -> bool:
    """Whether tracing failed because Python looked at tensor values: other sizes cannot help then."""
    return "data-dependent" in str(error) or type(error).__name__ == "GuardOnDataDependentSymNode"


def user_frame(error: BaseException) -> Frame | None:
    """The innermost line of the model's own code in an exception's traceback."""
    found = [Frame(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in found if not frame.is_library and not _is_ours(frame)]
    return own[-1] if own else None


def _is_ours(frame: Frame) -> bool:
    here = __file__.rsplit("/", 2)[0]
    return frame.file.startswith(here) or "deployml/exporter/" in frame.file


def refusal(error: Exception, module: torch.nn.Module, examples: Examples, name: str) -> DeploymlError:
    """The error to show for a model that torch.export refused.

    Args:
        error: What torch raised.
        module: The model; it is run once to tell wrong inputs from an untraceable model.
        examples: Its example inputs.
        name: How to call the model in messages.
    """
    if isinstance(error, DeploymlError):
        return error
    broken = _eager_failure(module, examples)
    if broken is not None:
        return InputError(
            f"The model '{name}' does not run on the example inputs: {_first_line(broken)}.",
            hint=f"Check the inputs ({_describe(examples)}): names, types and sizes.",
            where=_where(user_frame(broken)),
        )
    frame = user_frame(error)
    text = f"{type(error).__name__}: {error}"
    for pattern, reason, hint in _KNOWN:
        if re.search(pattern, text):
            return UnsupportedError(f"{_subject(frame)} {reason}.", hint=hint, where=_where(frame))
    return UnsupportedError(
        f"{_subject(frame)} cannot be traced: {_first_line(error)}.", hint=_HINT_OWN_CODE, where=_where(frame)
    )


def _eager_failure(module: torch.nn.Module, examples: Examples) -> Exception | None:
    try:
        quiet_run(module, examples)
    except Exception as error:  # whatever the model raises is the finding
        return error
    return None


def _subject(frame: Frame | None) -> str:
    if frame is None:
        return "The model"
    code = frame.code
    return f"The line `{code}`" if code else f"The line {frame.where}"


def _where(frame: Frame | None) -> str | None:
    return frame.where if frame is not None else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text.rstrip(".")[:240]


def _describe(examples: Examples) -> str:
    return ", ".join(f"{leaf.name} {_type(leaf.value)}" for leaf in examples.tensors) or "none"


def _type(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
