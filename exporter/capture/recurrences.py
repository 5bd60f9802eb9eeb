"""Functions of a model that compute the gated delta rule: found by what they compute, kept whole while tracing.

Such a function is called by the modules of a model as a global of their source file or as an attribute. Every
callable there whose first parameters are a query, a key, a value, a decay and a beta is asked for its result on
small random inputs; one that gives what the rule gives is replaced, for the time of the trace, by one torch op.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from .recurrence_op import LINEAR_ATTENTION

__all__ = ["recurrences_whole"]

#: What the first five parameters may be called.
_NAMES: Final = (("query", "q"), ("key", "k"), ("value", "v"), ("g", "decay", "gate"), ("beta", "b"))
_STATE, _WANTS_STATE, _NORMALISES = "initial_state", "output_final_state", "use_qk_l2norm_in_kernel"
#: Options that say how the rule is computed, not what.
_HARMLESS: Final = frozenset({"chunk_size"})
#: Of the largest value; the functions compute in float32, in chunks.
_CLOSE: Final = 1e-4
_EPSILON: Final = 1e-6


@contextlib.contextmanager
def recurrences_whole(module: torch.nn.Module) -> Iterator[None]:
    """Let the gated delta rules of a model be traced as ``deployml::linear_attention``, inside the block."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    known: dict[int, Callable[..., Any] | None] = {}
    try:
        for space, name, function in list(_candidates(module)):
            if id(function) not in known:
                known[id(function)] = _proven(function)
            whole = known[id(function)]
            if whole is not None:
                replaced.append((space, name, function))
                space[name] = whole
        yield
    finally:
        for space, name, function in replaced:
            space[name] = function


def _candidates(module: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Callables with the five parameters, with the dictionary and the name they are looked up by."""
    seen: set[int] = set()
    for part in module.modules():
        forward = inspect.unwrap(type(part).forward)
        for space in (getattr(forward, "__globals__", {}), vars(part)):
            if id(space) in seen:
                continue
            seen.add(id(space))
            for name, value in space.items():
                if callable(value) and not isinstance(value, type | torch.nn.Module) and _takes_a_rule(value):
                    yield space, name, value


def _takes_a_rule(function: Callable[..., Any]) -> bool:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return len(parameters) >= 5 and all(n in names for n, names in zip(parameters, _NAMES, strict=False))


def _proven(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """The stand-in of a function that gives the gated delta rule for every form of decay it takes, at least one."""
    whole = None
    for per_channel in (False, True):
        operands = _sample(per_channel)
        try:
            with torch.no_grad():
                alone = isinstance(function(*(o.clone() for o in operands)), torch.Tensor)
                found = _whole(function, alone=alone)
                agrees = all(_agrees(function, found, operands, options) for options in _options(function))
        except Exception:  # a function that does not take this form of decay; what it raises is its own affair
            continue
        if not agrees:
            return None
        whole = found
    return whole


def _options(function: Callable[..., Any]) -> list[dict[str, Any]]:
    """Calls to try: plain, and with each option that changes the meaning."""
    tried: list[dict[str, Any]] = [{}]
    parameters = inspect.signature(function).parameters
    if _NORMALISES in parameters:
        tried.append({_NORMALISES: True})
    if _STATE in parameters and _WANTS_STATE in parameters:
        state = torch.randn(2, 2, 8, 6, generator=torch.Generator().manual_seed(1))
        tried.append({_STATE: state, _WANTS_STATE: True})
    return tried


def _agrees(
    function: Callable[..., Any],
    whole: Callable[..., Any],
    operands: tuple[torch.Tensor, ...],
    options: dict[str, Any],
) -> bool:
    results = (f(*(o.clone() for o in operands), **options) for f in (function, whole))
    found, expected = ((r,) if isinstance(r, torch.Tensor) else tuple(r) for r in results)
    return len(found) == len(expected) and all(_near(a, b) for a, b in zip(found, expected, strict=True))


def _near(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if found is None or expected is None or found.shape != expected.shape:
        return found is expected
    difference = (found.double() - expected.double()).abs().max()
    return bool(difference <= _CLOSE * expected.abs().max().double())


def _sample(per_channel: bool) -> tuple[torch.Tensor, ...]:
    """Random operands, 67 tokens: more than one chunk of the usual 64."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    key = torch.nn.functional.normalize(draw(2, 67, 2, 8), dim=-1)
    decay = -draw(*((2, 67, 2, 8) if per_channel else (2, 67, 2))).abs() * 0.3
    return draw(2, 67, 2, 8), key, draw(2, 67, 2, 6), decay, draw(2, 67, 2).sigmoid()


def _whole(function: Callable[..., Any], *, alone: bool) -> Callable[..., Any]:
    """A stand-in of the same signature that calls the torch op; a call it cannot read goes to the function.

    Args:
        function: What it stands for.
        alone: Whether the function returns its output alone, without a state.
    """
    signature = inspect.signature(function)
    names = list(signature.parameters)[:5]
    keywords = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), "")

    @functools.wraps(function)
    def stand_in(*args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(*args, **kwargs).arguments)
        extra = given.pop(keywords, {})
        query, key, value, decay, beta = (given.pop(name) for name in names)
        state, wanted = given.pop(_STATE, None), given.pop(_WANTS_STATE, _WANTS_STATE not in signature.parameters)
        normalises = given.pop(_NORMALISES, False)
        unread = {n: v for n, v in given.items() if n not in _HARMLESS and v is not signature.parameters[n].default}
        if decay is None or beta is None or unread or any(isinstance(v, torch.Tensor) for v in extra.values()):
            return function(*args, **kwargs)  # packed sequences, say
        output, present = _call(query, key, value, decay, beta, state, normalises)
        return output if alone else (output, present if wanted else None)

    return stand_in


def _call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor | None,
    normalises: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype, groups = query.dtype, value.shape[2] // query.shape[2]
    operands = [o.to(torch.float32) for o in (query, key, value, decay, beta)]
    if normalises:
        operands[:2] = [_unit(o) for o in operands[:2]]
    if groups > 1:
        operands[:2] = [o.repeat_interleave(groups, dim=2) for o in operands[:2]]
    state = None if state is None else state.to(torch.float32)
    output, present = LINEAR_ATTENTION(*operands, state, query.shape[-1] ** -0.5)
    return output.to(dtype), present


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors * torch.rsqrt((vectors * vectors).sum(-1, keepdim=True) + _EPSILON)
