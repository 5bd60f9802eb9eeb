"""Example inputs from a file: ``.npz`` arrays, or tensors saved by ``torch.save``. Neither can run code."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...runtime.errors import InputError

__all__ = ["read_inputs"]

_FORM = "Give an .npz (numpy.savez(path, input_ids=..., ...)) or a .pt with a dict of tensors (torch.save)."
_POSITIONAL = re.compile(r"arr_\d+")
#: Example inputs are small; beyond this a compressed file is a bomb or a data set.
_MAX_BYTES = 4 << 30


def read_inputs(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Read example inputs.

    Returns:
        Positional and named inputs, as for ``forward(*args, **kwargs)``.

    Raises:
        InputError: Missing, damaged, no tensors in it, or it holds pickled objects.
    """
    if not path.is_file():
        raise InputError(f"there is no input file {path}", hint=_FORM)
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise InputError(f"the input file {path.name} is empty", hint=_FORM)
    if head.startswith(b"PK") and _is_npz(path):
        return _from_npz(path)
    if head.startswith((b"PK", b"\x80")):
        return _from_torch(path)
    raise InputError(f"the input file {path.name} is neither .npz nor torch.save", hint=_FORM)


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise _damaged(path, e) from e
    if sum(entry.file_size for entry in entries) > max(_MAX_BYTES, path.stat().st_size):
        raise InputError(f"the input file {path.name} declares more than 4 GiB", hint="Give one small batch.")
    return bool(entries) and all(entry.filename.endswith(".npy") for entry in entries)


def _from_npz(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import numpy as np
    import torch

    named: dict[str, Any] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for name in arrays.files:
                named[name] = torch.from_numpy(np.ascontiguousarray(arrays[name]))
    except Exception as e:  # zipfile, zlib and numpy have many ways to say that a file is damaged
        if "Object arrays" in str(e) or "allow_pickle" in str(e) or isinstance(e, TypeError):
            raise InputError(
                f"the input file {path.name} holds an array of Python objects or of no numeric dtype: {e}",
                hint="Save plain numeric arrays; ragged ones must be padded first.",
            ) from e
        raise _damaged(path, e) from e
    if not named:
        raise InputError(f"the input file {path.name} holds no arrays", hint=_FORM)
    if all(_POSITIONAL.fullmatch(name) for name in named):
        return tuple(named[name] for name in sorted(named, key=lambda name: int(name[4:]))), {}
    return (), named


def _from_torch(path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
    import torch

    try:
        with path.open("rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        raise InputError(
            f"the input file {path.name} holds Python objects, which are not loaded",
            hint="Save tensors only: torch.save({'input_ids': ids, 'attention_mask': mask}, path).",
        ) from e
    except Exception as e:
        raise _damaged(path, e) from e
    if isinstance(loaded, torch.Tensor):
        return (loaded,), {}
    if isinstance(loaded, list | tuple) and loaded:
        return tuple(loaded), {}
    if isinstance(loaded, Mapping) and loaded:
        return (), {str(name): value for name, value in loaded.items()}
    raise InputError(f"the input file {path.name} holds a {type(loaded).__name__}, no inputs", hint=_FORM)


def _damaged(path: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"the input file {path.name} is truncated or damaged ({reason})", hint="Write it anew.")
