"""Load Hugging Face folders (config.json and weights), from the disk only."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError, ToolchainError
from .opened import Opened
from .wording import brief

__all__ = ["load_folder", "short_name"]

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SHOWN = 12


def load_folder(path: Path) -> Opened:
    """Load the model of a Hugging Face folder in float32, with the class its config names.

    Raises:
        InputError: No weights, a dangling link, code of its own, or weights that do not fit the class.
        ToolchainError: transformers is not installed.
    """
    config = _read_config(path)
    _check_weights(path)
    transformers = _transformers()
    import torch

    names = [name for name in config.get("architectures") or () if isinstance(name, str)]
    cls = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if cls is None and config.get("auto_map"):
        raise InputError(
            f"{path.name}/ needs Python code of its own ({', '.join(names) or 'auto_map'}), which is not run",
            hint="Read that code, then give the weights file and --factory FILE.py:FN, which builds the model.",
        )
    try:
        with _silent(transformers):
            loader = cls or transformers.AutoModel
            module, info = loader.from_pretrained(
                str(path), local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as e:
        raise InputError(
            f"{path.name}/ cannot be loaded by transformers {transformers.__version__}: {brief(e)}",
            hint="Check that config.json and the weights belong together and that this transformers knows the model.",
        ) from e
    _check_complete(path, info, type(module).__name__)
    return Opened(module, notes=tuple(_notes(path, config, type(module).__name__)))


def short_name(path: Path) -> str:
    """Name of a model folder; for a snapshot in the hub's cache, the model's name and not the commit."""
    for part in reversed(path.absolute().parts):
        if part.startswith("models--"):
            return part.split("--")[-1]
    name = path.name or path.absolute().name
    return re.sub(r"[^\w.-]+", "-", name) or "model"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise InputError(
            f"config.json in {path.name}/ cannot be read: {brief(e)}", hint="Download the folder again."
        ) from e
    if not isinstance(config, dict) or "model_type" not in config:
        raise InputError(
            f"config.json in {path.name}/ names no model_type, so it is no transformers model",
            hint="Give the weights file inside together with --factory pkg.mod:build.",
        )
    return config


def _check_weights(path: Path) -> None:
    files = sorted(file for pattern in _WEIGHTS for file in path.glob(pattern))
    dangling = [file.name for file in files if not file.exists()]
    if dangling:
        raise InputError(
            f"{', '.join(dangling[:4])} in {path.name}/ links to a file that is not there",
            hint="Download the snapshot again; only its links were copied.",
        )
    if not files:
        raise InputError(
            f"{path.name}/ holds config.json but no weights (*.safetensors)",
            hint="Download the weights too; deployml fetches nothing from a network.",
        )
    _check_not_pointers(path, files)


def _check_not_pointers(path: Path, files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as handle:
            head = handle.read(32)
        if head.startswith(b"version https://git-lfs"):
            raise InputError(
                f"{file.name} in {path.name}/ is a Git LFS pointer, not the weights",
                hint="Run `git lfs pull` there.",
            )
        if not head:
            raise InputError(f"{file.name} in {path.name}/ is empty", hint="Download it again.")


def _check_complete(path: Path, info: Any, cls: str) -> None:
    get = info.get if isinstance(info, dict) else lambda name: getattr(info, name, ())
    missing, misfits = sorted(get("missing_keys") or ()), sorted(map(str, get("mismatched_keys") or ()))
    if not missing and not misfits:
        return
    names = [*missing, *misfits]
    listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    raise InputError(
        f"the weights in {path.name}/ do not fill {cls}: {len(names)} would be random ({listed})",
        hint='Set "architectures" in config.json to the class that was saved, or give the weights file and --factory.',
    )


def _notes(path: Path, config: dict[str, Any], cls: str) -> Iterator[str]:
    stored = config.get("dtype") or config.get("torch_dtype")
    if isinstance(stored, str) and stored not in ("float32", "auto"):
        yield f"weights are stored as {stored}; loaded as float32"
    if not config.get("architectures"):
        yield f"config.json names no architecture; loaded as {cls}"
    if (path / "modules.json").exists():
        yield "a sentence-transformers folder: pooling and normalisation (modules.json) stay outside the graph"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as e:
        raise ToolchainError(
            "loading a Hugging Face folder needs the package transformers",
            hint="pip install 'deployml[transformers]'",
        ) from e
    return transformers


@contextlib.contextmanager
def _silent(transformers: Any) -> Iterator[None]:
    """No bars and load reports of transformers between ours."""
    logs = transformers.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
