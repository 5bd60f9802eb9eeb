"""Load a model in any of the forms it comes in, with example inputs and dynamic axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError
from ..inputs import Given, choose_inputs
from ..loaded import Loaded
from .checkpoint import find_examples, find_model, find_state
from .factory import build
from .huggingface import load_folder, short_name
from .opened import Opened, Trust
from .pickled import read_object, read_weights_only
from .prepare import Prepared, prepare
from .program import load_program, training_nodes
from .sniff import Format, sniff
from .tensors import read_safetensors
from .torchscript import load_torchscript
from .weights import fill
from .wording import export_command, printable

__all__ = ["load"]


def load(
    source: Any,
    *,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any | None = None,
    inputs: Sequence[str] = (),
    inputs_file: str | Path | None = None,
    factory: str | Callable[[], Any] | None = None,
    trust_pickle: bool = False,
    allow_globals: Sequence[str] = (),
    with_past: bool = False,
) -> Loaded:
    """Load a model and settle its example inputs and dynamic axes.

    Args:
        source: Path of a file or Hugging Face folder, or an ``nn.Module``, ``ExportedProgram`` or ``ScriptModule``.
        args: Positional example inputs.
        kwargs: Example inputs by name.
        dynamic_shapes: What ``torch.export.export`` takes; with ``args`` or ``kwargs`` None means fixed axes.
        inputs: Inputs as text, ``NAME:DTYPE[batch,seq,64]`` each: names are dynamic axes, numbers are fixed.
        inputs_file: An ``.npz`` or ``.pt`` file of example inputs.
        factory: ``pkg.mod:build`` or ``FILE.py:FN``, which builds the module that a state_dict belongs to.
        trust_pickle: Run whatever a pickled file asks for.
        allow_globals: Dotted names a pickled file may use.
        with_past: Make the key-value cache of a decoder inputs and outputs; the inputs are then chosen here.

    Returns:
        The model in ``eval()`` on the CPU; :meth:`Loaded.restore` puts a module that was handed over back.

    Raises:
        InputError: The source, the factory or the inputs cannot be used as given.
        ToolchainError: A package that this source needs is missing.
    """
    trust = Trust(trust_pickle, tuple(allow_globals))
    opened, name = _open(source, factory, trust)
    done = _prepare(opened, keep_cache=with_past)
    module = done.module
    try:
        given = Given(
            tuple(args),
            dict(kwargs or {}),
            dynamic_shapes,
            tuple(inputs),
            inputs_file,
            opened.examples,
            done.kwargs,
        )
        if with_past:
            module, given = _behind_past(module, given, name)
        chosen = choose_inputs(module, opened.kind, given, source=name)
    except BaseException:
        done.restore()
        raise
    return Loaded(
        module=module,
        kind=opened.kind,
        name=name,
        args=chosen.args,
        kwargs=chosen.kwargs,
        dynamic_shapes=chosen.dynamic_shapes,
        notes=(*opened.notes, *done.notes, *chosen.notes),
        source=name if not isinstance(source, str | Path) else Path(source).name or name,
        undo=tuple(done.undo),
    )


def _behind_past(module: Any, given: Given, name: str) -> tuple[Any, Given]:
    if given.args or given.kwargs or given.specs or given.file is not None:
        raise InputError(
            "--with-past chooses the inputs itself: ids, mask, and keys and values of each layer",
            hint="Leave the inputs out, or leave --with-past out and wrap the model.",
        )
    from .past import with_past

    wrapped, inputs, shapes = with_past(module, name)
    return wrapped, Given(kwargs=inputs, dynamic_shapes=shapes)


def _open(source: Any, factory: str | Callable[[], Any] | None, trust: Trust) -> tuple[Opened, str]:
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        form = sniff(path)
        name = short_name(path) if form is Format.HUGGING_FACE else _stem(path)
        return _open_path(path, form, factory, trust), name
    opened = _open_object(source)
    return opened, _object_name(source)


def _stem(path: Path) -> str:
    known = (
        ".pt",
        ".pth",
        ".pt2",
        ".ckpt",
        ".bin",
        ".safetensors",
        ".ts",
        ".jit",
        ".pkl",
        ".pickle",
        ".torchscript",
    )
    return path.stem if path.suffix.lower() in known else path.name


def _object_name(source: Any) -> str:
    name = getattr(source, "original_name", None)
    if isinstance(name, str):
        return name
    return "program" if hasattr(source, "graph_signature") else type(source).__name__


def _open_object(source: Any) -> Opened:
    import torch

    if isinstance(source, torch.jit.ScriptModule):
        return Opened(source, kind="torchscript")
    if isinstance(source, torch.nn.Module):
        return Opened(source)
    if isinstance(source, torch.export.ExportedProgram):
        return Opened(source, kind="program")
    what = "a state_dict" if isinstance(source, Mapping) else f"a {type(source).__name__}"
    raise InputError(
        f"cannot export {what}",
        hint="Give a path, an nn.Module, an ExportedProgram or a ScriptModule; load a state_dict into a module.",
    )


def _open_path(path: Path, form: Format, factory: str | Callable[[], Any] | None, trust: Trust) -> Opened:
    if form is Format.HUGGING_FACE:
        _no_factory(path, form, factory)
        return load_folder(path)
    if form is Format.PROGRAM:
        _no_factory(path, form, factory)
        return load_program(path, trust)
    if form is Format.TORCHSCRIPT:
        _no_factory(path, form, factory)
        return load_torchscript(path)
    if form is Format.SAFETENSORS:
        return _from_safetensors(path, factory)
    if factory is not None:
        return _from_weights(path, form, factory)
    return _from_pickle(path, form, trust)


def _no_factory(path: Path, form: Format, factory: object | None) -> None:
    if factory is not None:
        raise InputError(
            f"{path.name} is a {form.value}: it brings its own module, so --factory has no place",
            hint="Leave --factory out, or give a file of weights.",
        )


def _from_safetensors(path: Path, factory: str | Callable[[], Any] | None) -> Opened:
    if factory is None:
        folder = "; or give the folder it lies in" if (path.parent / "config.json").exists() else ""
        raise _needs_factory(path, folder)
    tensors = read_safetensors(path)
    module, label = _build(factory)
    notes = fill(module, tensors, source=path.name, factory=label)
    return Opened(module, fresh=True, notes=notes)


def _from_weights(path: Path, form: Format, factory: str | Callable[[], Any]) -> Opened:
    loaded, replaced = read_weights_only(path, form)
    found = find_state(loaded)
    if found is None:
        raise _no_model(path, loaded)
    module, label = _build(factory)
    notes = fill(module, found.value, source=path.name, factory=label)
    if found.key:
        rest = f" (it also holds {', '.join(found.others[:4])})" if found.others else ""
        notes = (f"took the weights under {found.key!r} of {path.name}{rest}", *notes)
    if replaced:
        notes = (
            *notes,
            f"read only the weights of {path.name}; {len(replaced)} classes it names were not loaded",
        )
    return Opened(module, fresh=True, examples=find_examples(loaded), notes=notes)


def _from_pickle(path: Path, form: Format, trust: Trust) -> Opened:
    loaded = read_object(path, form, trust)
    found = find_model(loaded)
    if found is None:
        state = find_state(loaded)
        raise _no_model(path, loaded) if state is None else _needs_factory(path, "", len(state.value))
    notes = (f"took the module under {found.key!r} of {path.name}",) if found.key else ()
    return Opened(found.value, examples=find_examples(loaded), notes=notes)


def _build(factory: str | Callable[[], Any]) -> tuple[Any, str]:
    return build(factory), factory if isinstance(factory, str) else getattr(factory, "__name__", "factory")


def _needs_factory(path: Path, rest: str, count: int | None = None) -> InputError:
    what = f"a state_dict ({count} tensors)" if count is not None else "a file of tensors"
    return InputError(
        f"{path.name} is {what}: weights without the module they belong to",
        hint=f"{export_command(path)} --factory pkg.mod:build (or FILE.py:FN), where the function builds the "
        f"module without arguments{rest}.",
    )


def _no_model(path: Path, loaded: Any) -> InputError:
    keys = (
        f" with the keys {', '.join(printable(key, limit=40) for key in list(loaded)[:10])}"
        if isinstance(loaded, Mapping)
        else ""
    )
    return InputError(
        f"{path.name} holds a {type(loaded).__name__}{keys}: no module and no weights in it",
        hint="Save the model: torch.save(model.state_dict(), ...) or torch.export.save(torch.export.export(...), ...).",
    )


def _prepare(opened: Opened, *, keep_cache: bool) -> Prepared:
    if opened.kind != "program":
        script = opened.kind == "torchscript"
        return prepare(opened.module, fresh=opened.fresh, script=script, keep_cache=keep_cache)
    done = Prepared(opened.module)
    training = training_nodes(opened.module)
    if training:
        done.notes.append(
            f"the program was exported in training mode ({', '.join(training[:4])}) and stays so; "
            "export the module again after eval()"
        )
    return done
