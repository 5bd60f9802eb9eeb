"""Make a module ready to be traced: on the CPU, in eval(), without a cache; remember how to undo all of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ...runtime.errors import InputError

__all__ = ["Prepared", "configs_of", "prepare"]

#: Buffers of more bytes are not copied: they are tables and weights.
_KEPT = 64 << 20

#: Attention implementations that need a GPU or cannot be traced; sdpa computes the same.
_UNTRACEABLE = ("flash", "flex", "paged", "xformers")


@dataclass
class Prepared:
    """What was done to a module.

    Attributes:
        module: The module to trace (unwrapped, if it was wrapped).
        kwargs: Arguments to pass to ``forward`` besides the inputs (``use_cache=False`` where only that helps).
        notes: Sentences for the user.
        undo: Actions that put the module back, last first.
    """

    module: Any
    kwargs: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    undo: list[Callable[[], None]] = field(default_factory=list)

    def restore(self) -> None:
        """Undo everything."""
        for action in reversed(self.undo):
            action()


def prepare(module: Any, *, fresh: bool = False, script: bool = False, keep_cache: bool = False) -> Prepared:
    """Put a module into the state in which it is exported.

    Args:
        module: An ``nn.Module`` or a ``ScriptModule``; changed in place, see :meth:`Prepared.restore`.
        fresh: It was built a moment ago, so that its training mode is nobody's mistake.
        script: It is a ``ScriptModule``.
        keep_cache: Its key-value cache is wanted, so ``use_cache`` stays as it is.

    Raises:
        InputError: It has weights without data, or on several devices.
    """
    done = Prepared(module)
    try:
        if not script:
            _unwrap(done)
        _to_cpu(done)
        _eval(done, fresh)
        if not script:
            if not keep_cache:
                _drop_cache(done)
            _traceable_attention(done)
            _dtype(done)
        _keep_buffers(done)
    except BaseException:
        done.restore()
        raise
    return done


def _keep_buffers(done: Prepared) -> None:
    """Models count, gather statistics and cache in buffers: afterwards those hold what they held before."""
    kept = [(buffer, buffer.detach().clone()) for buffer in done.module.buffers() if buffer.nbytes <= _KEPT]

    def put_back() -> None:
        for buffer, value in kept:
            buffer.data.copy_(value)

    done.undo.append(put_back)


def _unwrap(done: Prepared) -> None:
    """DataParallel and torch.compile wrap the module that is meant."""
    while True:
        name = type(done.module).__name__
        inner = "module" if name in ("DataParallel", "DistributedDataParallel") else "_orig_mod"
        if name not in ("DataParallel", "DistributedDataParallel", "OptimizedModule"):
            return
        done.module = getattr(done.module, inner)
        done.notes.append(f"exported the module inside the {name} wrapper")


def _to_cpu(done: Prepared) -> None:
    tensors = [*done.module.parameters(), *done.module.buffers()]
    devices = sorted({str(tensor.device) for tensor in tensors})
    if any(device.startswith("meta") for device in devices):
        empty = [name for name, tensor in done.module.named_parameters() if tensor.is_meta]
        raise InputError(
            f"the model has weights without data (device meta): {', '.join(empty[:8])}",
            hint="Load its weights before exporting it.",
        )
    if devices in ([], ["cpu"]):
        return
    if len(devices) > 1:
        raise InputError(f"the model is spread over {', '.join(devices)}", hint="Move it first: model.to('cpu').")
    module = done.module
    module.to("cpu")
    done.undo.append(lambda: module.to(devices[0]))
    done.notes.append(f"moved from {devices[0]} to the CPU for the export")


def _eval(done: Prepared, fresh: bool) -> None:
    """Flags are restored one by one: train() may be overridden, and a wrapper's flag would flip its children."""
    flags = [(part, part.training) for part in done.module.modules() if hasattr(part, "training")]
    on = [part for part, training in flags if training]
    if not on:
        return
    done.undo.append(lambda: _set_training(flags))
    done.module.eval()
    for part in on:
        if part.training:
            part.training = False
    if not fresh:
        whole = "the model was" if len(on) == len(flags) else f"{len(on)} of {len(flags)} modules were"
        done.notes.append(f"{whole} in training mode; put into eval() (dropout off) for the export")


def _set_training(flags: list[tuple[Any, bool]]) -> None:
    for part, training in flags:
        part.training = training


def configs_of(module: Any) -> Iterator[Any]:
    """Every distinct config object in a module tree (sub-models hold copies), nested ones too."""
    seen: set[int] = set()
    for part in module.modules():
        pending = [getattr(part, "config", None)]
        while pending:
            config = pending.pop()
            if config is None or id(config) in seen or not hasattr(config, "__dict__"):
                continue
            seen.add(id(config))
            yield config
            pending.extend(v for v in vars(config).values() if hasattr(v, "model_type") and hasattr(v, "to_dict"))


def _drop_cache(done: Prepared) -> None:
    """Switch ``use_cache`` off: a key-value cache among the outputs is no tensor."""
    switched = []
    for config in configs_of(done.module):
        if vars(config).get("use_cache"):
            switched.append(config)
            config.use_cache = False
    default = _parameters(done.module).get("use_cache")
    if default is not None and default.default is True:
        done.kwargs["use_cache"] = False
    if switched:
        done.undo.append(lambda: _set_use_cache(switched))
    if (switched and _may_return_cache(done.module)) or done.kwargs:
        done.notes.append(
            "use_cache switched off: the key-value cache is no output of the exported graph; --with-past makes it one"
        )


def _may_return_cache(module: Any) -> bool:
    """BERT's config says use_cache too, yet only a decoder returns one."""
    known = {"use_cache", "past_key_values"} & set(_parameters(module))
    encoder_only = getattr(module.config, "is_decoder", None) is False if hasattr(module, "config") else False
    return bool(known) and (not encoder_only or bool(getattr(module.config, "is_encoder_decoder", False)))


def _set_use_cache(configs: list[Any]) -> None:
    for config in configs:
        config.use_cache = True


def _parameters(module: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return {}


def _traceable_attention(done: Prepared) -> None:
    module = done.module
    before = getattr(getattr(module, "config", None), "_attn_implementation", None)
    setter = getattr(module, "set_attn_implementation", None)
    if not isinstance(before, str) or setter is None or not any(word in before for word in _UNTRACEABLE):
        return
    each = [(config, getattr(config, "_attn_implementation", None)) for config in configs_of(module)]
    try:
        setter("sdpa")
    except (ValueError, ImportError) as e:
        raise InputError(
            f"the model uses the attention implementation {before}, which cannot be traced, and has no other ({e})",
            hint='Load it with attn_implementation="eager" and export that.',
        ) from e
    # Put back as a plain value: the setter would check again whether a GPU is there.
    done.undo.append(lambda: _set_attention(each))
    done.notes.append(f"attention implementation {before} replaced by sdpa for the export")


def _dtype(done: Prepared) -> None:
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in done.module.parameters() if p.is_floating_point()})
    if kinds not in ([], ["float32"]):
        done.notes.append(f"weights are {' and '.join(kinds)}; the graph keeps them so")


def _set_attention(each: list[tuple[Any, Any]]) -> None:
    for config, before in each:
        if before is not None:
            config._attn_implementation = before
