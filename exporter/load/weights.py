"""Put a state_dict into a module: every key must find its place, or all that do not are listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runtime.errors import InputError
from .wording import printable

__all__ = ["fill"]

#: What wrappers (DataParallel, DDP, torch.compile, Lightning) put before the names.
_WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.", "encoder.")
_SHOWN = 20


def fill(module: Any, state: Mapping[str, Any], *, source: str, factory: str) -> tuple[str, ...]:
    """Load ``state`` into ``module``.

    Args:
        module: The ``nn.Module`` that the factory built; changed in place.
        state: Tensors by name.
        source: File name, for messages.
        factory: The factory's name, for messages.

    Returns:
        Notes: a prefix that was cut off, a change of dtype.

    Raises:
        InputError: Missing, unexpected or mis-shaped keys; all are listed.
    """
    notes: list[str] = []
    own = module.state_dict()
    prefix = _prefix(own, state)
    if prefix:
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        notes.append(f"cut the prefix {prefix!r} off the names in {source}")
    misfits = [
        f"{name}: {tuple(state[name].shape)} in the file, {tuple(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and getattr(tensor, "shape", None) != state[name].shape
    ]
    # A weight may be absent where the model shares it with one that is there, or bear a second name in the file.
    filled = {_address(tensor) for name, tensor in own.items() if name in state} - {None}
    used = {_address(tensor) for name, tensor in state.items() if name in own} - {None}
    buffers = {name: tensor.shape for name, tensor in module.named_buffers()}
    missing = [n for n, t in own.items() if n not in state and hasattr(t, "shape") and _address(t) not in filled]
    unexpected = [
        name
        for name, tensor in state.items()
        # Old files keep buffers that the model now computes by itself.
        if name not in own and _address(tensor) not in used and buffers.get(name) != tensor.shape
    ]
    if misfits or missing or unexpected:
        raise _mismatch(source, factory, missing, unexpected, misfits)
    notes.extend(_dtype_note(own, state, source))
    module.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)
    return tuple(notes)


def _prefix(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """The longest common prefix of wrappers whose removal makes more names fit."""
    best, prefix = "", ""
    fits = sum(name in own for name in state)
    for _ in range(4):
        step = next((w for w in _WRAPPERS if all(name.startswith(prefix + w) for name in state)), None)
        if step is None:
            break
        prefix += step
        now = sum(name.removeprefix(prefix) in own for name in state)
        if now > fits:
            best, fits = prefix, now
    return best


def _address(tensor: Any) -> tuple[int, tuple[int, ...], tuple[int, ...]] | None:
    """Identity of the memory a tensor shows; None for one without memory."""
    if not hasattr(tensor, "data_ptr") or tensor.numel() == 0 or tensor.is_meta:
        return None
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride())


def _dtype_note(own: Mapping[str, Any], state: Mapping[str, Any], source: str) -> list[str]:
    pairs = {
        (str(state[name].dtype).removeprefix("torch."), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in own.items()
        if name in state and hasattr(tensor, "dtype") and state[name].dtype != tensor.dtype
    }
    return [f"weights of {source} are {stored}, the model holds them as {held}" for stored, held in sorted(pairs)]


def _mismatch(source: str, factory: str, missing: list[str], unexpected: list[str], misfits: list[str]) -> InputError:
    lines = [f"{source} does not fit the model that --factory {factory} builds:"]
    for what, names in (
        ("missing in the file", missing),
        ("not in the model", unexpected),
        ("of another shape", misfits),
    ):
        if names:
            lines.append(f"  {what} ({len(names)}):")
            lines += [f"    {printable(name)}" for name in names[:_SHOWN]]
            lines += [f"    ... and {len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return InputError(
        "\n".join(lines),
        hint="Build the very model that was saved: same class, same sizes, same heads.",
    )
